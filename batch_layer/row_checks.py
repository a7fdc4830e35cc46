"""Row checks: a raw row against its application's event, in Spark's workers, a batch at a time.

A row becomes one of `checked_schema`: good with REASON null, or refused with a reason and its original. Nothing that
one row holds, and nothing that an application's code raises, stops the others.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pydantic import ValidationError

from batch_layer.raw_objects import raw_key
from batch_layer.readers import BLOCK, EVENT_ID, FILE, LABEL, MALFORMED, OCCURRED_AT, SPLIT_BY
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application, event_of, payload_row, payload_schema
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.fields import stored
from deeplambda.loading import PackedApplication
from deeplambda.objective import label_of_file, label_text
from deeplambda.records.featurizer import said
from deeplambda.sources import AnySource, Lines, check_decoded, content_id
from deeplambda.splits import group_text, moment

LEFT_OUT = "left_out"
"""The reason that is no fault of the row's."""

GROUP, ROW_NUMBER, REASON, DETAIL, RECORD = "__group", "__row", "__reason", "__detail", "__record"
"""What is known of a row beside its columns in the lake. No field of an event begins with an underscore."""

_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_DETAIL_CHARACTERS = 2000
_UNREADABLE = "__unreadable"  # no field of an event is called so

Batches = Iterator[pa.RecordBatch]


def checked_schema(application: Application) -> pa.Schema:
    """Columns of a checked row. GROUP: what must not be in two splits. ROW_NUMBER: where in the source it stood."""
    text = [("event_id", pa.string()), ("split", pa.string()), (GROUP, pa.string())]
    verdict = [(name, pa.string()) for name in ("label", "source", "source_sha256")]
    refusal = [(ROW_NUMBER, pa.int64()), (REASON, pa.string()), (DETAIL, pa.string()), (RECORD, pa.binary())]
    payload = [field.with_nullable(True) for field in payload_schema(application.event)]  # a refused row has none
    return pa.schema([*text, *payload, *verdict, *refusal])


def reader_check(settings: Settings, packed: PackedApplication, number: int, root: str) -> Callable[[Batches], Batches]:
    """For mapInArrow: rows of `read_rows` to checked rows. number: the source's position. root: where objects lie."""

    def check(batches: Batches) -> Batches:
        application, store = packed.load(), ObjectStore(settings)
        source, schema = application.sources[number], checked_schema(application)
        checks, place = RowChecks(application, source), _Place(root)
        # A task has the rows of a file one after the other.
        fingerprint = lru_cache(maxsize=1)(lambda name: store.fingerprint(raw_key(application.name, name)))
        for batch in batches:
            rows = []
            for given in _each(batch):
                if isinstance(source, Lines) and not given[source.column].strip():
                    continue
                name, row = place.of(given.pop(FILE), given.pop(BLOCK))
                origin = {"source": name, "source_sha256": fingerprint(name), ROW_NUMBER: row}
                rows.append(origin | checks.of_reader(given))
            yield pa.RecordBatch.from_pylist(rows, schema=schema)

    return check


def _each(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of a batch. What Python cannot hold, such as a time after the year 9999 or a text that is no UTF-8,
    comes as its error, under _UNREADABLE."""
    try:
        yield from batch.to_pylist()
    except Exception:  # of one value; to_pylist does not say which
        for n in range(batch.num_rows):
            row: dict[str, Any] = {}
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    row[name] = column[n].as_py()
                except Exception as exc:
                    row |= {name: None, _UNREADABLE: exc}
                    if name == MALFORMED:
                        row[name] = column.cast(pa.binary())[n].as_py().decode(errors="backslashreplace")
            yield row


class RowChecks:
    """The checks of one source's rows."""

    def __init__(self, application: Application, source: AnySource) -> None:
        self._event, self._splits, self._source = application.event, application.splits, source
        self._pinned: str | None = getattr(source, "split", None)
        self._payload = payload_schema(application.event).names
        self._objective = application.objective
        # A label is checked once, not in each of the rows that have it.
        self._known_label = lru_cache(maxsize=1024, typed=True)(partial(label_of_file, application.objective))

    def of_raw(self, row: Any) -> dict[str, Any]:
        """Of what `examples` gave."""
        try:
            values = dict(row)
            label = values.get("label")
            return self._checked(values, label, values)
        except Exception as exc:  # whatever the row holds, and whatever the application's validators raise
            return _refused(exc, _record(row))

    def of_image(self, column: str, content: bytes, label: str | None, record: bytes) -> dict[str, Any]:
        """Of an image. column: the payload's field for it. record: what stands for it in quarantine."""
        try:
            if not content.startswith(_IMAGES):
                raise ValueError("the file is neither PNG nor JPEG")
            return self._checked({column: content}, label, {})
        except Exception as exc:
            return _refused(exc, record)

    def of_reader(self, given: dict[str, Any]) -> dict[str, Any]:
        """Of a row of `read_rows`."""
        values = {field: given[field] for field in self._payload if field in given}
        record = given[MALFORMED].encode() if given[MALFORMED] is not None else None
        try:
            if isinstance(self._source, Lines):
                record = values[self._source.column]
                values[self._source.column] = text = record.decode("utf-8-sig")
                if "\0" in text:
                    raise ValueError("it has zero bytes: the file is no text in UTF-8")
            if _UNREADABLE in given:
                raise given[_UNREADABLE]
            if given[MALFORMED] is not None:
                raise ValueError(self._unread(values))
            extra = {"event_id": given[EVENT_ID], "occurred_at": given[OCCURRED_AT]}
            values |= {key: value for key, value in extra.items() if value is not None}
            check_decoded(self._source, (*values.values(), given[LABEL]))
            return self._checked(values, given[LABEL], {self._splits.column: given[SPLIT_BY]})
        except Exception as exc:
            return _refused(exc, _record(values | {"label": given[LABEL]}) if record is None else record)

    def _unread(self, values: Mapping[str, Any]) -> str:
        empty = [field for field, value in values.items() if value is None]
        return f"cannot be read: {', '.join(empty)}" if empty else "cannot be read: it has more or fewer cells"

    def _label(self, label: Any) -> str:
        return self._known_label(label) if isinstance(label, (str, int, bool)) else label_text(self._objective, label)

    def _checked(self, values: Mapping[str, Any], given_label: Any, columns: Mapping[Any, Any]) -> dict[str, Any]:
        given = dict(values)
        if (time := given.get("occurred_at")) is not None:
            given["occurred_at"] = moment(time)
        event = event_of(self._event, {"occurred_at": now(), "event_id": "?"} | given)
        payload = payload_row(event)
        label = None if given_label is None else self._label(given_label)
        own_time = event.occurred_at if time is not None else None
        event_id = event.event_id if "event_id" in given else content_id(payload, label, own_time)
        by = self._splits.column
        value = None if by is None else getattr(event, by) if by in self._event.model_fields else columns.get(by)
        split = self._pinned or self._splits.split_of(event_id, value)
        group = group_text(stored(value)) if self._splits.grouped and value is not None else None
        reason = None if split else LEFT_OUT
        return {"event_id": event_id, "split": split, GROUP: group, "label": label, REASON: reason} | payload


class _Place:
    """Name and row number of each row of a task: files come one after the other, each in its order."""

    def __init__(self, root: str) -> None:
        self._root, self._row = root, 0
        self._file: tuple[str, int] | None = None

    def of(self, file: str, block: int) -> tuple[str, int]:
        """A row's number counts from the first byte of its part of the file, so it is the file's in its first part,
        and never that of a row in another part."""
        self._row = self._row + 1 if self._file == (file, block) else block or 0
        self._file = (file, block)
        return unquote(file).removeprefix(self._root), self._row


def _refused(exc: Exception, record: bytes) -> dict[str, Any]:
    told = str(exc) if isinstance(exc, (ValidationError, ValueError)) else said(exc)
    return {REASON: type(exc).__name__, DETAIL: told[:_DETAIL_CHARACTERS], RECORD: record}


def _record(row: Any) -> bytes:
    if isinstance(row, Mapping):
        row = {str(key): value.hex() if isinstance(value, bytes) else value for key, value in row.items()}
    return json.dumps(row, default=str).encode()
