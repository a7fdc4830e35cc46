"""Whole objects: what Spark's workers fetch as it is, with its recorded hash checked: raw sources, and images.

Their names are dealt out to the tasks, so that nobody lists them again and a task holds few of them at a time.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from batch_layer.raw_objects import raw_key
from batch_layer.readers import check_split_column
from batch_layer.row_checks import DETAIL, REASON, ROW_NUMBER, Batches, RowChecks, checked_schema
from deeplambda.adapters.s3 import ObjectStore, sha256_of
from deeplambda.application import Application, payload_schema
from deeplambda.config import Settings
from deeplambda.errors import BadInput, ConfigurationError, CorruptObject, kept
from deeplambda.loading import PackedApplication
from deeplambda.records.featurizer import said
from deeplambda.sources import Images, Source, matched

CORRUPT_OBJECT, TOO_LARGE, EXAMPLES_FAILED = "corrupt_object", "too_large", "examples_failed"
"""The reasons that are none of a row's: they refuse the whole ingest."""

_CALLS_TASKS = 1000
"""Tasks that share the calls of `examples`, at most."""
_IMAGES_OF_A_TASK = 500
_FETCHED_AT_ONCE = 8
"""Images: most of the time that a small object takes is waiting."""
_BATCH_ROWS, _BATCH_BYTES = 4096, 16 * 2**20

Check = Callable[[Batches], Batches]


def read_together(spark: SparkSession, application: Application, names: Set[str]) -> DataFrame:
    """A row for each call of `examples` with one of these objects: the raw source's position, and all objects."""
    rows = [
        (number, list(together.objects))
        for number, source in enumerate(application.sources)
        if isinstance(source, Source)
        for together in source.read_together(names)
        if not names.isdisjoint(together.objects)
    ]
    dealt = spark.sparkContext.parallelize(rows, max(1, min(len(rows), _CALLS_TASKS)))
    return spark.createDataFrame(dealt, "number INT, objects ARRAY<STRING>")


def raw_source_check(settings: Settings, packed: PackedApplication) -> Check:
    """For mapInArrow: rows of `read_together` to the checked rows of what `examples` gives."""

    def check(batches: Batches) -> Batches:
        application, store = packed.load(), ObjectStore(settings)
        for call in (call for batch in batches for call in batch.to_pylist()):
            source = application.sources[call["number"]]
            assert isinstance(source, Source)
            rows = _raw_rows(application, replace(source, objects=tuple(call["objects"])), store)
            yield from _in_batches(rows, checked_schema(application))

    return check


def image_names(spark: SparkSession, source: Images, names: Iterable[str]) -> DataFrame:
    """The names of a source's objects, of which there is at least one."""
    of_source = matched(source.path, names)
    tasks = max(len(of_source) // _IMAGES_OF_A_TASK, min(len(of_source), spark.sparkContext.defaultParallelism))
    return spark.createDataFrame(spark.sparkContext.parallelize(of_source, tasks), "STRING").toDF("name")


def image_check(settings: Settings, packed: PackedApplication, number: int) -> Check:
    """For mapInArrow: rows of `image_names` to checked rows. number: the source's position.

    Raises: ConfigurationError, BadInput where the event or the splits take no images.
    """
    column = _image_column(packed.load(), number)

    def check(batches: Batches) -> Batches:
        application, store = packed.load(), ObjectStore(settings)
        names = (name for batch in batches for name in batch["name"].to_pylist())
        yield from _in_batches(_image_rows(application, number, column, store, names), checked_schema(application))

    return check


def _image_column(application: Application, number: int) -> str:
    source = application.sources[number]
    assert isinstance(source, Images)
    binary = [field.name for field in payload_schema(application.event) if pa.types.is_binary(field.type)]
    column = source.column or (binary[0] if len(binary) == 1 else None)
    if column is None or column not in binary:
        raise ConfigurationError(
            f"Images({source.path!r}) fills one field of bytes, the event of {application.name} has {len(binary)}",
            "name one as column",
        )
    check_split_column(application, source, ())
    return column


def _image_rows(
    application: Application, number: int, column: str, store: ObjectStore, names: Iterator[str]
) -> Iterator[dict[str, Any]]:
    source = application.sources[number]
    assert isinstance(source, Images)
    checks = RowChecks(application, source)

    def fetch(name: str) -> bytes | BadInput:
        try:
            return store.get(raw_key(application.name, name))
        except BadInput as exc:  # damaged, or gone since it was listed
            return kept(exc)

    with ThreadPoolExecutor(_FETCHED_AT_ONCE) as executor:
        while some := [*islice(names, _FETCHED_AT_ONCE)]:
            for name, content in zip(some, executor.map(fetch, some), strict=True):
                if isinstance(content, BadInput):
                    detail = f"{name}: {content.message}"
                    yield {"source": name, "source_sha256": "", REASON: CORRUPT_OBJECT, DETAIL: detail}
                else:
                    origin = {"source": name, "source_sha256": sha256_of(content), ROW_NUMBER: 0}
                    original = json.dumps({"object": name}).encode()
                    yield origin | checks.of_image(column, content, source.label_of(name), original)


def _raw_rows(application: Application, source: Source, store: ObjectStore) -> Iterator[dict[str, Any]]:
    checks, first, named = RowChecks(application, source), source.objects[0], ", ".join(source.objects)
    origin: dict[str, Any] = {"source": first, "source_sha256": ""}
    try:
        raw = {name: store.get(raw_key(application.name, name)) for name in source.objects}
        digests = [sha256_of(content) for content in raw.values()]
        # Of several that are read together, rows are of another source as soon as one of them has changed.
        origin["source_sha256"] = digests[0] if len(digests) == 1 else sha256_of("".join(digests).encode())
        for number, row in enumerate(application.examples(source, raw)):
            yield origin | {ROW_NUMBER: number} | checks.of_raw(row)
    except (CorruptObject, ValueError) as exc:  # ValueError: sources of unequal length
        detail = exc.message if isinstance(exc, CorruptObject) else str(exc)
        yield origin | {REASON: CORRUPT_OBJECT, DETAIL: f"{first}: {detail}"}
    except MemoryError as exc:
        yield origin | {REASON: TOO_LARGE, DETAIL: f"{named}: {exc}" if str(exc) else named}
    except Exception as exc:
        # Python hides a generator's StopIteration in an error of its own, which tells no line of the application.
        own = exc.__cause__ if isinstance(exc.__cause__, StopIteration) else exc
        yield origin | {REASON: EXAMPLES_FAILED, DETAIL: f"{named}: {said(own)}"}


def _in_batches(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> Batches:
    held, size = list[dict[str, Any]](), 0
    for row in rows:
        held.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, (bytes, str)))
        if len(held) == _BATCH_ROWS or size >= _BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(held, schema=schema)
            held, size = [], 0
    yield pa.RecordBatch.from_pylist(held, schema=schema)
