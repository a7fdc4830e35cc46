"""A sample of an application's labelled rows, read from a folder in this process: what ingest does, without Spark.

A large object is sampled evenly, for rows are often sorted by time or by label; of a rare label more rows are taken
than its share, for some metrics need each.
"""

import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
from pydantic import ValidationError

from deeplambda.application import Application, Event, event_of, payload_fields, payload_row, payload_schema
from deeplambda.errors import BadInput
from deeplambda.objective import label_of_file
from deeplambda.sources import (
    Csv,
    Images,
    JsonLines,
    Lines,
    Parquet,
    Source,
    Table,
    check_decoded,
    content_id,
    matched,
    names_below,
    split_names,
)
from deeplambda.splits import BySource, moment
from deeplambda.testing.read_values import cell, of_json, of_parquet

LIMIT_ROWS = 2000
READ_BYTES = 64 << 20
"""Of one text or table, at most so much is read."""
MOST_IDS = 1_000_000
"""Event ids that are looked at, at most."""
UNREAD = "\0unread"
"""In place of its columns, what was found of a row that is no row of its table."""
_SCANNED = 20
"""Times as many rows as are taken, `examples` is asked for."""
_MOST_LABELS = 50
"""With more, labels are numbers or the like, and none is rare."""
_NOW = datetime(2026, 1, 1, tzinfo=UTC)
T = TypeVar("T")
L = TypeVar("L")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One labelled event. split: None where the rule leaves it out."""

    event: Event
    label: str | None
    split: str | None


@dataclass(kw_only=True)
class Sample:
    """refused: reasons by how often they came; bad_labels: labels that the objective refuses. overwritten: by source,
    of its rows in order, how many have the event id of an earlier one and other cells, and how many were looked at."""

    rows: list[Row] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    bad_labels: Counter[str] = field(default_factory=Counter)
    expected_splits: tuple[str, ...] = ()
    overwritten: dict[str, tuple[int, int]] = field(default_factory=dict)

    def of(self, split: str) -> list[Row]:
        """The rows of one split."""
        return [row for row in self.rows if row.split == split]


def read_sample(application: Application, folder: Path, limit_rows: int = LIMIT_ROWS) -> Sample:
    """Rows of all sources of `application`, whose objects lie in `folder` as they would below `<application>/raw/`.

    Raises: BadInput when an object is missing, ConfigurationError for sources and splits that do not go together.
    """
    rule = getattr(application, "splits", None) or BySource()
    sample = Sample(expected_splits=split_names(application.sources, rule))
    names = names_below(folder)
    share = max(1, limit_rows // max(1, len(application.sources)))
    for source in application.sources:
        objects = [name for path in source.paths for name in matched(path, names)]
        if absent := [path for path in source.paths if not matched(path, names)]:
            raise BadInput(f"{folder} has no {absent[0]!r}, which a source names", "give the folder of the raw objects")
        if isinstance(source, Table) and source.event_id is not None:
            sample.overwritten[source.path] = _overwritten(source, [folder / name for name in objects])
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
    if UNREAD in raw:
        raise ValueError(
            "it has more or fewer cells than the header"
            + ("" if source.multiline else "; where a cell has line breaks, give Csv multiline=True")
        )
    check_decoded(source, raw.values())
    columns = getattr(source, "columns", {})
    given: dict[str, Any] = {
        name: raw[columns.get(name, name)] for name in payload_fields(schema) if columns.get(name, name) in raw
    }
    if isinstance(source, Table):
        given = {name: _as_read(source, schema, name, value) for name, value in given.items()}
    given |= {name: raw[name] for name in ("event_id", "occurred_at") if name in raw and isinstance(source, Source)}
    for name in ("event_id", "occurred_at"):
        if (column := getattr(source, name, None)) is not None and raw[column] not in (None, ""):
            given[name] = str(raw[column]) if name == "event_id" or isinstance(source, JsonLines) else raw[column]
    if "occurred_at" in given:
        given["occurred_at"] = moment(given["occurred_at"])
    own_id = "event_id" in given
    event = event_of(schema, {"event_id": "unnamed", "occurred_at": _NOW, **given})
    if not own_id:
        event = event.model_copy(update={"event_id": content_id(payload_row(event), label)})
    split = getattr(source, "split", None)
    if split is None:
        column = rule.column
        value = getattr(event, column) if column in schema.model_fields else raw.get(column) if column else None
        split = rule.split_of(event.event_id, value)
    return Row(event=event, label=label, split=split)


def _as_read(source: Table, schema: type[Event], name: str, value: Any) -> Any:
    """A value as Spark's readers make it that of a field."""
    kind = payload_schema(schema).field(name).type
    try:
        if isinstance(source, Csv):
            return None if value == "" else cell(value, kind)
        return of_json(value, kind) if isinstance(source, JsonLines) else of_parquet(value, kind)
    except ValueError as exc:
        raise ValueError(f"{name}: cannot be read as {kind}") from exc


def _label_fits(application: Application, label: str) -> bool:
    try:
        label_of_file(application.objective, label)
    except (ValueError, KeyError, TypeError):
        return False
    return True


def _rows(
    application: Application, source: Any, folder: Path, objects: list[str], limit: int
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Raw rows of one source with their labels, at most about `limit`."""
    if isinstance(source, Source):
        calls = source.read_together(objects)
        share = max(1, limit // len(calls))
        for together in calls:
            raw = {name: (folder / name).read_bytes() for name in together.objects}
            found = islice(application.examples(together, raw), _SCANNED * share)
            yield from sampled(((row, _label(row.get("label"))) for row in found), share)
        return
    if isinstance(source, Images):
        name = source.column or next(
            field.name for field in payload_schema(application.event) if str(field.type) == "binary"
        )
        for path, label in sampled(((path, source.label_of(path)) for path in objects), limit):
            yield {name: (folder / path).read_bytes()}, label
        return
    share = max(1, limit // max(1, len(objects)))
    for path in objects:
        if isinstance(source, Lines):
            for line in evenly((text.rstrip("\n") for text in lines(folder / path) if text.strip()), share):
                yield {source.column: line}, source.label
        elif isinstance(source, Parquet):
            for row in parquet_rows(folder / path, share, source.label):
                yield row, _label(row.get(source.label or ""))
        elif isinstance(source, Table):
            yield from sampled(
                ((row, _label(row.get(source.label or ""))) for row in _text_rows(source, folder / path)), share
            )


def _overwritten(source: Table, paths: Sequence[Path]) -> tuple[int, int]:
    """An even sample of a panel shows each customer once, so the rows are looked at one after the other."""
    content: dict[int, int] = {}
    found, looked_at = 0, 0
    for row in islice((row for path in paths for row in _each_row(source, path)), MOST_IDS):
        looked_at += 1
        if (value := row.get(source.event_id or "")) not in (None, ""):
            of_row = hash(repr(row))
            found += content.setdefault(hash(str(value)), of_row) != of_row
    return found, looked_at


def _each_row(source: Table, path: Path) -> Iterator[dict[str, Any]]:
    return each_parquet_row(path) if isinstance(source, Parquet) else _text_rows(source, path)


def _label(value: Any) -> str | None:
    """A label as text; a boolean as JSON writes it."""
    if value is None or value == "" or value != value:  # NaN
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text_rows(source: Table, path: Path) -> Iterator[dict[str, Any]]:
    if isinstance(source, Csv):
        return csv_rows(path, source.separator, header=source.header, multiline=source.multiline, encoding=source.codec)
    return map(json.loads, (line for line in lines(path) if line.strip()))


def lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[str]:
    """Lines of a text, inflated where its name ends in `.gz`; at most READ_BYTES of it."""
    read = 0
    with (
        gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as opened,
        TextIOWrapper(opened, encoding=encoding, errors="replace", newline="") as text,
    ):
        for line in text:
            yield line.replace("\r\n", "\n")
            read += len(line)
            if read > READ_BYTES:
                return


def csv_rows(
    path: Path, separator: str = ",", *, header: bool = True, multiline: bool = False, encoding: str = "utf-8-sig"
) -> Iterator[dict[str, Any]]:
    """Rows of a table as text, with the columns `_c0`, `_c1`, … where no header names them.

    A row of more or fewer cells than the first has the key UNREAD alone. Raises: BadInput.
    """
    try:
        yield from _csv_rows(lines(path, encoding), separator, header=header, multiline=multiline)
    except csv.Error as exc:
        raise BadInput(f"{path.name} cannot be read as a table: {exc}", "see whether a quote is left open") from exc


def _csv_rows(text: Iterable[str], separator: str, *, header: bool, multiline: bool) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(READ_BYTES)
    if multiline:
        rows: Iterator[list[str]] = csv.reader(text, delimiter=separator)
    else:
        rows = (row for line in text for row in csv.reader([line.rstrip("\n")], delimiter=separator))
    names: list[str] | None = None
    for row in rows:
        if not row:
            continue
        if names is None:
            names = row if header else [f"_c{n}" for n in range(len(row))]
            if header:
                continue
        yield dict(zip(names, row, strict=True)) if len(row) == len(names) else {UNREAD: separator.join(row)}


def each_parquet_row(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows one after the other, up to READ_BYTES of them. columns: those that are read; None: all."""
    import pyarrow.parquet as pq

    read = 0
    for batch in pq.ParquetFile(path).iter_batches(4096, columns=columns):
        yield from batch.to_pylist()
        read += batch.nbytes
        if read > READ_BYTES:
            return


def parquet_rows(path: Path, limit: int, label: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of up to eight row groups that lie evenly in the file; times in UTC, as Spark reads them."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    groups = list(evenly(range(file.num_row_groups), 8))
    for group in groups:
        table = file.read_row_group(group)
        labels = table[label].to_pylist() if label in table.column_names else [None] * table.num_rows
        wanted = [number for number, _ in sampled(enumerate(labels), max(1, limit // len(groups)))]
        table = table.take(wanted)
        for number, column in enumerate(table.schema):
            if pa.types.is_timestamp(column.type):
                in_utc = table[number].cast(pa.timestamp("us", tz="UTC"), safe=False)
                table = table.set_column(number, column.name, in_utc)
        yield from table.to_pylist()


def sampled(labelled: Iterable[tuple[T, L]], limit: int) -> list[tuple[T, L]]:
    """About `limit` of the items with their labels, at even distances; more of a label that would be rare."""
    whole: _Evenly[tuple[int, T, L]] = _Evenly(limit)
    by_label: dict[L, _Evenly[tuple[int, T, L]]] = {}
    for number, (item, label) in enumerate(labelled):
        whole.add((number, item, label))
        if len(by_label) <= _MOST_LABELS:
            by_label.setdefault(label, _Evenly(max(1, limit // 4))).add((number, item, label))
    found = {each[0]: each[1:] for each in whole.kept()}
    if len(by_label) <= _MOST_LABELS:
        for of_label in by_label.values():
            found |= {each[0]: each[1:] for each in evenly(of_label.kept(), max(1, limit // (4 * len(by_label))))}
    return [found[number] for number in sorted(found)]


def evenly(items: Iterable[T], limit: int) -> list[T]:
    """At most `limit` of the items, at even distances."""
    chosen: _Evenly[T] = _Evenly(limit)
    for item in items:
        chosen.add(item)
    return chosen.kept()


class _Evenly(Generic[T]):
    """Of a stream whose length is not known beforehand, items at even distances."""

    def __init__(self, limit: int) -> None:
        self._limit, self._stride, self._seen = limit, 1, 0
        self._items: list[T] = []

    def add(self, item: T) -> None:
        """The stream's next item."""
        if self._seen % self._stride == 0:
            self._items.append(item)
            if len(self._items) == 2 * self._limit:
                self._items, self._stride = self._items[::2], 2 * self._stride
        self._seen += 1

    def kept(self) -> list[T]:
        """At most `limit` of those so far."""
        step = max(1.0, len(self._items) / self._limit)
        return [self._items[int(n * step)] for n in range(min(self._limit, len(self._items)))]
