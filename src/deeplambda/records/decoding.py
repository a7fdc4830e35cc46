"""From the bytes that a producer sent to a checked event: the same checks for the stream, REST and recomputation.

An event is JSON after the application's schema, plain or as a CloudEvent in structured mode
(CloudEvents 1.0.2, JSON event format, section 3), keyed by its event id.
"""

import re
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from deeplambda.application import Event, payload_schema
from deeplambda.errors import InvalidEvent
from deeplambda.records.featurizer import said
from deeplambda.splits import DIGITS, SECONDS_OR_MILLISECONDS

E = TypeVar("E", bound=Event)
_FIRST, _END = datetime.fromtimestamp(1e8, UTC), datetime.fromtimestamp(1e10, UTC)
"""The times that 9 digits of seconds begin with and 13 digits of milliseconds end with."""


class Reason(StrEnum):
    """Why an event was refused: the `reason` of its dead letter."""

    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    BAD_VALUE = "bad_value"
    MISSING_KEY = "missing_key"
    KEY_MISMATCH = "key_mismatch"
    TRANSFORM_FAILED = "transform_failed"
    MODEL_FAILED = "model_failed"


class RefusedEvent(InvalidEvent):
    """An event that was refused; `reason` is its class, for counting, and the message explains it."""

    def __init__(self, message: str, remedy: str, reason: Reason) -> None:
        super().__init__(message, remedy)
        self.args = (message, remedy, reason)  # what unpickling passes to __init__
        self.reason = reason


def decode_event(schema: type[E], value: bytes | None, *, limit_bytes: int) -> E:
    """The event in `value`. Raises: RefusedEvent."""
    if value is None:
        raise RefusedEvent("the event has no value", "send the event as JSON", Reason.NOT_JSON)
    if len(value) > limit_bytes:
        raise RefusedEvent(
            f"the event has {len(value)} bytes, the limit is {limit_bytes}",
            "send a smaller event, or raise DEEPLAMBDA_EVENT_LIMIT_BYTES",
            Reason.TOO_LARGE,
        )
    try:
        plain = _plain(value) if b'"specversion"' in value else value
        event = schema.model_validate_json(plain)
        if (name := _digits_for_a_time(event, plain)) is None:
            return event
        why = f"field {name!r}: digits alone are no time", "send it as 2024-01-31T10:00:00Z", Reason.BAD_VALUE
    except ValidationError as exc:
        why = _why(exc.errors(include_url=False, include_input=False, include_context=False)[0])
    except (RefusedEvent, MemoryError):
        raise
    except Exception as exc:  # a validator of the user's may raise anything; pydantic takes two kinds for a refusal
        why = f"the schema raised {said(exc)}", "raise ValueError for what is refused", Reason.BAD_VALUE
    # With a name here, or with the other as its cause, it would hold the frame of whoever called.
    raise RefusedEvent(*why)


def _digits_for_a_time(event: Event, plain: bytes) -> str | None:
    """A field whose text pydantic took for seconds or milliseconds since 1970 and `moment` does not: "20240131"."""
    odd = [
        name
        for name in _times(type(event))
        if (at := getattr(event, name)) is not None and not _FIRST <= at.replace(tzinfo=at.tzinfo or UTC) < _END
    ]
    given: Any = from_json(plain) if odd else {}  # rarely: nearly every time lies between
    for name in odd:
        text = given.get(name)
        if isinstance(text, str) and re.fullmatch(DIGITS, text) and not re.fullmatch(SECONDS_OR_MILLISECONDS, text):
            return name
    return None


@lru_cache(maxsize=64)
def _times(schema: type[Event]) -> tuple[str, ...]:
    payload = (field.name for field in payload_schema(schema) if pa.types.is_timestamp(field.type))
    return ("occurred_at", *payload)


def check_key(event: Event, key: bytes | None) -> None:
    """Producers key their events by event id, so that one event's copies share a partition. Raises: RefusedEvent."""
    if key is None:
        raise RefusedEvent("the record has no key", "key each record by its event_id", Reason.MISSING_KEY)
    if key != event.event_id.encode():
        raise RefusedEvent(
            f"the record's key differs from the event's event_id {event.event_id!r}",
            "key each record by its event_id",
            Reason.KEY_MISMATCH,
        )


def readable_id(value: bytes) -> str | None:
    """The event id in `value`, even if the rest is invalid; None without one. The MQTT bridge keys events by it."""
    try:
        event: Any = from_json(_plain(value) if b'"specversion"' in value else value)
    except ValueError:
        return None
    found = event.get("event_id") if isinstance(event, dict) else None
    return found if isinstance(found, str) and found else None


def is_cloud_event(value: Any) -> bool:
    """Whether parsed JSON is a structured CloudEvent."""
    return isinstance(value, dict) and isinstance(value.get("data"), dict) and "specversion" in value


def _plain(value: bytes) -> bytes:
    """A structured CloudEvent as a plain event: its data with its id and time; anything else as it is."""
    try:
        envelope: Any = from_json(value)
    except ValueError:
        return value  # the schema's own parser reports the error and its position
    if not is_cloud_event(envelope):
        return value
    named = {"event_id": envelope.get("id"), "occurred_at": envelope.get("time")}
    return to_json(envelope["data"] | {name: given for name, given in named.items() if given is not None})


def _why(first: ErrorDetails) -> tuple[str, str, Reason]:
    field = ".".join(str(step) for step in first["loc"])
    where = f"field {field!r}: " if field else ""
    kind = first["type"]
    if kind == "json_invalid":
        return first["msg"], "send the event as UTF-8 JSON", Reason.NOT_JSON
    if kind == "missing":
        return f"field {field!r} is missing", "send every field of the schema", Reason.MISSING_FIELD
    if kind.endswith("_type") or kind == "is_instance_of":
        return f"{where}{first['msg']}", "send the type that the schema names", Reason.WRONG_TYPE
    return f"{where}{first['msg']}", "send a value that the schema allows", Reason.BAD_VALUE
