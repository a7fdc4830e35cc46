"""A sample of an application's labelled rows, read from a folder in this process: what ingest does, without Spark.

A large object is sampled evenly, for rows are often sorted by time or by label.
"""

import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from deeplambda.application import Application, Event, payload_fields, payload_row, payload_schema
from deeplambda.errors import BadInput
from deeplambda.sources import (
    BySource,
    Csv,
    Images,
    JsonLines,
    Lines,
    Parquet,
    Source,
    Table,
    content_id,
    matched,
    moment,
    split_names,
)

LIMIT_ROWS = 2000
READ_BYTES = 64 << 20
"""Of one text, at most so much is read."""
_NOW = datetime(2026, 1, 1, tzinfo=UTC)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One labelled event. split: None where the rule leaves it out."""

    event: Event
    label: str | None
    split: str | None


@dataclass(kw_only=True)
class Sample:
    """refused: reasons by how often they came; bad_labels: labels that the objective refuses."""

    rows: list[Row] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    bad_labels: Counter[str] = field(default_factory=Counter)
    expected_splits: tuple[str, ...] = ()

    def of(self, split: str) -> list[Row]:
        """The rows of one split."""
        return [row for row in self.rows if row.split == split]


def read_sample(application: Application, folder: Path, limit_rows: int = LIMIT_ROWS) -> Sample:
    """Rows of all sources of `application`, whose objects lie in `folder` as they would below `<application>/raw/`.

    Raises: BadInput when an object is missing, ConfigurationError for sources and splits that do not go together.
    """
    rule = getattr(application, "splits", None) or BySource()
    sample = Sample(expected_splits=split_names(application.sources, rule))
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    share = max(1, limit_rows // max(1, len(application.sources)))
    for source in application.sources:
        objects = [name for path in source.paths for name in matched(path, names)]
        if absent := [path for path in source.paths if not matched(path, names)]:
            raise BadInput(f"{folder} has no {absent[0]!r}, which a source names", "give the folder of the raw objects")
        for raw, label in _rows(application, source, folder, objects, share):
            try:
                row = _checked(application, source, rule, raw, label)
            except ValidationError as exc:
                first = exc.errors(include_url=False, include_input=False)[0]
                sample.refused[f"{'.'.join(map(str, first['loc']))}: {first['msg']}"] += 1
                continue
            except (ValueError, KeyError) as exc:
                sample.refused[str(exc)] += 1
                continue
            if row.label is not None and not _label_fits(application, row.label):
                sample.bad_labels[row.label] += 1
            else:
                sample.rows.append(row)
    return sample


def _checked(application: Application, source: Any, rule: Any, raw: Mapping[str, Any], label: str | None) -> Row:
    schema = application.event
    columns = getattr(source, "columns", {})
    given: dict[str, Any] = {
        name: raw[columns.get(name, name)] for name in payload_fields(schema) if columns.get(name, name) in raw
    }
    given |= {name: raw[name] for name in ("event_id", "occurred_at") if name in raw and isinstance(source, Source)}
    for name in ("event_id", "occurred_at"):
        if (column := getattr(source, name, None)) is not None:
            given[name] = str(raw[column]) if name == "event_id" else moment(raw[column])
    own_id = "event_id" in given
    event = _validated(schema, {"event_id": "unnamed", "occurred_at": _NOW, **given}, source)
    if not own_id:
        event = event.model_copy(update={"event_id": content_id(_plain(payload_row(event)), label)})
    split = getattr(source, "split", None)
    if split is None:
        column = rule.column
        value = getattr(event, column) if column in schema.model_fields else raw.get(column) if column else None
        split = rule.split_of(event.event_id, value)
    return Row(event=event, label=label, split=split)


def _validated(schema: type[Event], given: Mapping[str, Any], source: Any) -> Event:
    """As strict as what the source holds allows: text has no types, JSON has few."""
    if isinstance(source, Csv):
        text = {name: str(value) for name, value in given.items() if value != "" or _is_text(schema, name)}
        text["occurred_at"] = str(given["occurred_at"])
        return schema.model_validate_strings(text, strict=False)
    if isinstance(source, JsonLines):
        return schema.model_validate_json(json.dumps(dict(given), default=str))
    return schema.model_validate(dict(given), strict=False if isinstance(source, Parquet) else None)


def _is_text(schema: type[Event], name: str) -> bool:
    return schema.model_fields[name].annotation is str


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, bytes) else json.loads(json.dumps(value, default=str))
        for name, value in row.items()
    }


def _label_fits(application: Application, label: str) -> bool:
    try:
        application.objective.label_array([label])
    except (ValueError, KeyError, TypeError):
        return False
    return True


def _rows(
    application: Application, source: Any, folder: Path, objects: list[str], limit: int
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Raw rows of one source with their labels, at most about `limit`."""
    if isinstance(source, Source):
        raw = {name: (folder / name).read_bytes() for name in objects}
        for row in islice(application.examples(source, raw), limit):
            label = row.get("label")
            yield row, None if label is None else str(label)
        return
    share = max(1, limit // max(1, len(objects)))
    if isinstance(source, Images):
        name = source.column or next(
            field.name for field in payload_schema(application.event) if str(field.type) == "binary"
        )
        for path in evenly(objects, limit):
            yield {name: (folder / path).read_bytes()}, source.label_of(path)
        return
    for path in objects:
        if isinstance(source, Lines):
            for line in evenly((text.rstrip("\n") for text in lines(folder / path) if text.strip()), share):
                yield {source.column: line}, source.label
        elif isinstance(source, Table):
            for row in _table_rows(source, folder / path, share):
                label = row.get(source.label) if source.label else None
                yield (
                    row,
                    None
                    if label is None or label == ""
                    else str(label).lower()
                    if isinstance(label, bool)
                    else str(label),
                )


def _table_rows(source: Any, path: Path, limit: int) -> Iterator[dict[str, Any]]:
    if isinstance(source, Parquet):
        yield from parquet_rows(path, limit)
    elif isinstance(source, JsonLines):
        yield from map(json.loads, evenly((line for line in lines(path) if line.strip()), limit))
    else:
        yield from evenly(csv_rows(path, source.separator, header=source.header), limit)


def lines(path: Path) -> Iterator[str]:
    """Lines of a text, inflated where its name ends in `.gz`; at most READ_BYTES of it."""
    read = 0
    with (
        gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as opened,
        TextIOWrapper(opened, encoding="utf-8", errors="replace", newline="") as text,
    ):
        for line in text:
            yield line.replace("\r\n", "\n")
            read += len(line)
            if read > READ_BYTES:
                return


def csv_rows(path: Path, separator: str = ",", *, header: bool = True) -> Iterator[dict[str, Any]]:
    """Rows of a table as text, with the columns `_c0`, `_c1`, … where no header names them."""
    rows = csv.reader(lines(path), delimiter=separator)
    names = next(rows, []) if header else None
    for row in rows:
        if row:
            yield dict(zip(names or [f"_c{n}" for n in range(len(row))], row, strict=False))


def parquet_rows(path: Path, limit: int) -> Iterator[dict[str, Any]]:
    """Rows of up to eight row groups that lie evenly in the file."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    groups = list(evenly(range(file.num_row_groups), 8))
    for group in groups:
        table = file.read_row_group(group)
        wanted = list(evenly(range(table.num_rows), max(1, limit // len(groups))))
        yield from table.take(wanted).to_pylist()


def evenly(items: Iterable[T], limit: int) -> Iterator[T]:
    """At most `limit` of the items, at even distances; of a stream whose length is not known beforehand."""
    kept: list[T] = []
    stride = 1
    for number, item in enumerate(items):
        if number % stride:
            continue
        kept.append(item)
        if len(kept) == 2 * limit:
            kept, stride = kept[::2], 2 * stride
    step = max(1.0, len(kept) / limit)
    return iter([kept[int(n * step)] for n in range(min(limit, len(kept)))])
