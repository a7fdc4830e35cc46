"""Ingest: raw objects on S3 → checked rows in the master data set.

1. Spark reads each source's objects whole; their SHA-256 must be the one that was recorded when they were put.
2. The application turns them into rows; every row is checked against the event schema.
3. One Iceberg append adds the good rows that are not there yet; another puts the rest in `quarantine` with the reason.
An object that is corrupt or cut short refuses its whole source before anything is written.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import ValidationError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from deeplambda.adapters import mysql
from deeplambda.adapters.lake import create_tables
from deeplambda.adapters.s3 import ObjectStore, sha256_of
from deeplambda.application import Application, Event, Source, payload_row, payload_schema
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput, CorruptObject
from deeplambda.loading import PackedApplication

_BATCH_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What one run found and added, rows by split."""

    found: Mapping[str, int]
    added: Mapping[str, int]
    quarantined: int
    duration_s: float


def raw_key(application: str, name: str) -> str:
    """Where a raw object is kept."""
    return f"{application}/raw/{name}"


def ingest(spark: SparkSession, settings: Settings, packed: PackedApplication) -> Ingested:
    """Append what is new in the application's raw objects. A second run adds nothing.

    Raises: BadInput when an object is missing, CorruptObject when one is damaged, Conflict when another run is at it.
    """
    application, started = packed.load(), time.monotonic()
    create_tables(spark, application)
    recorded = _recorded_hashes(settings, application)
    with mysql.named_lock(mysql.engine(settings, "platform"), f"deeplambda.{application.name}.ingest"):
        parsed = _parsed(spark, settings, packed, recorded).persist()
        try:
            if refused := parsed.where("reason = 'corrupt_object'").select("detail").first():
                raise CorruptObject(refused.detail, "upload the original again with 'deeplambda data put', then ingest")
            return _append(spark, application.name, parsed, started)
        finally:
            parsed.unpersist()


def _recorded_hashes(settings: Settings, application: Application) -> dict[str, str | None]:
    """By object name, the SHA-256 recorded on S3, None where whoever put the object recorded none."""
    store = ObjectStore(settings)
    there = {key for key, _ in store.list(raw_key(application.name, ""))}
    names = [name for source in application.sources for name in source.objects]
    if missing := [name for name in names if raw_key(application.name, name) not in there]:
        raise BadInput(
            f"raw object {raw_key(application.name, missing[0])} is not on S3",
            f"put it there: 'deeplambda data put {application.name} FOLDER'",
        )
    return {name: store.digest(raw_key(application.name, name)) for name in names}


def _parsed(
    spark: SparkSession, settings: Settings, packed: PackedApplication, recorded: Mapping[str, str | None]
) -> DataFrame:
    """Every row of every source, good ones with `reason` NULL."""
    application = packed.load()
    sources = {name: source.split for source in application.sources for name in source.objects}
    root = f"s3a://{settings.s3_bucket}/{raw_key(application.name, '')}"
    objects = (
        spark.read.format("binaryFile")
        .load([root + name for name in sources])
        .select(F.element_at(F.split("path", "/"), -1).alias("name"), "content")
        .withColumn("split", F.create_map(*[F.lit(word) for pair in sources.items() for word in pair])[F.col("name")])
    )
    schema = _parsed_schema(application)

    def parse(objects_of_split: pa.Table) -> pa.Table:
        application = packed.load()
        raw = dict(zip(objects_of_split["name"].to_pylist(), objects_of_split["content"].to_pylist(), strict=True))
        source = next(s for s in application.sources if set(s.objects) == set(raw))
        return pa.Table.from_batches(_checked_rows(application, source, raw, recorded, schema), schema=schema)

    spark.sparkContext.addPyFile(str(packed.zip_file))
    return (
        objects.groupBy("split")
        .applyInArrow(parse, from_arrow_schema(schema))
        .withColumns({"code_version": F.lit(packed.code_version), "ingested_at": F.current_timestamp()})
    )


def _parsed_schema(application: Application) -> pa.Schema:
    text = [("event_id", pa.string()), ("split", pa.string())]
    verdict = [("label", pa.string()), ("source", pa.string()), ("source_sha256", pa.string()), ("row", pa.int64())]
    refusal = [("reason", pa.string()), ("detail", pa.string()), ("record", pa.binary())]
    payload = [field.with_nullable(True) for field in payload_schema(application.event)]  # a refused row has none
    return pa.schema([*text, *payload, *verdict, *refusal])


def _checked_rows(
    application: Application,
    source: Source,
    raw: Mapping[str, bytes],
    recorded: Mapping[str, str | None],
    schema: pa.Schema,
) -> Iterator[pa.RecordBatch]:
    hashes = {name: sha256_of(content) for name, content in raw.items()}
    first = source.objects[0]
    origin = {"split": source.split, "source": first, "source_sha256": hashes[first]}
    rows: list[dict[str, Any]] = []
    try:
        for name, found in hashes.items():
            if recorded[name] not in (None, found):
                raise CorruptObject(f"{name} has SHA-256 {found[:12]}…, {recorded[name][:12]}… was recorded of it")  # type: ignore[index]
        for number, row in enumerate(application.examples(source, raw)):
            rows.append(origin | {"row": number} | _check(application, row))
            if len(rows) == _BATCH_ROWS:
                yield pa.RecordBatch.from_pylist(rows, schema=schema)
                rows = []
    except (CorruptObject, ValueError) as exc:  # ValueError: sources of unequal length
        rows = [origin | {"reason": "corrupt_object", "detail": f"{first}: {exc}"}]
    yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _check(application: Application, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's columns, or the reason why it is none."""
    try:
        label = str(row["label"])
        application.objective.label_array([label])
        event: Event = application.event.model_validate({"occurred_at": now()} | dict(row))
    except (ValidationError, ValueError, KeyError) as exc:
        kept = {key: value.hex() if isinstance(value, bytes) else value for key, value in row.items()}
        record = json.dumps(kept, default=str).encode()
        return {"reason": type(exc).__name__, "detail": str(exc)[:2000], "record": record}
    return {"event_id": event.event_id, "label": label} | payload_row(event)


def _append(spark: SparkSession, name: str, parsed: DataFrame, started: float) -> Ingested:
    examples, quarantine = f"lake.{name}.examples", f"lake.{name}.quarantine"
    good = parsed.where("reason IS NULL")
    columns = spark.table(examples).columns
    new = good.join(spark.table(examples).select("event_id"), "event_id", "left_anti").select(columns).persist()
    added = _by_split(new)
    if added:
        new.repartition("split").sortWithinPartitions("event_id").writeTo(examples).append()
    new.unpersist()
    refused = (
        parsed.where("reason IS NOT NULL")
        .withColumnRenamed("ingested_at", "quarantined_at")
        .select(spark.table(quarantine).columns)
        .join(spark.table(quarantine).select("source_sha256", "row"), ["source_sha256", "row"], "left_anti")
        .select(spark.table(quarantine).columns)
        .persist()
    )
    quarantined = refused.count()
    if quarantined:
        refused.coalesce(1).writeTo(quarantine).append()
    refused.unpersist()
    return Ingested(found=_by_split(good), added=added, quarantined=quarantined, duration_s=time.monotonic() - started)


def _by_split(rows: DataFrame) -> dict[str, int]:
    return {row["split"]: row["count"] for row in rows.groupBy("split").count().collect()}
