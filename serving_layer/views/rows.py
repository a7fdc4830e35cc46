"""Kafka's records as rows of `realtime_predictions`: the text of their values in SQL.

Nearly all records are just as `Prediction` writes them, without a character that JSON or SQL would escape. One regular
expression stands for that form and nothing else; what it finds are the values, at a quarter of what reading the JSON,
checking and writing it again take. A record that it does not match is read by pydantic.
"""

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from deeplambda.records import topics
from deeplambda.records.predictions import Prediction, json_text
from deeplambda.state.tables import REALTIME_PREDICTIONS

COLUMNS = tuple(column.name for column in REALTIME_PREDICTIONS.columns if column.name != "stored_at")
"""In the order of a row's values; when it is stored is not known yet."""

# Bounds are narrower than pydantic's where that is simpler: every quantity fits its column, and SQL's decimals.
_CHARACTER = r"""[^"'\\\x00-\x1f]"""
_TEXT = f'"{_CHARACTER}*+"'
_COUNT = "(?:0|[1-9][0-9]{0,8}+)"
_NUMBER = r"-?+(?:0|[1-9][0-9]{0,15}+)(?:\.[0-9]{1,25}+)?+(?:e-?+[0-9]{1,2}+)?+"
_MOMENT = r"[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]{6})?+Z"
_FORMS = {
    "application": f'"({_CHARACTER}{{1,64}}+)"',
    "event_id": rf'"(?!\s)({_CHARACTER}{{1,128}}+)(?<!\s)"',
    "kafka_partition": f"({_COUNT})",
    "kafka_offset": "(0|[1-9][0-9]{0,17}+)",
    "occurred_at": f'"({_MOMENT})"',
    "received_at": f'"({_MOMENT})"',
    "predicted_at": f'"({_MOMENT})"',
    "model_version": f"({_COUNT})",
    "prediction": f'"({_CHARACTER}{{0,255}}+)"',
    "confidence": f"(null|{_NUMBER})",
    "value": f"(null|{_NUMBER})",
    "scores": rf"(?:null|(\{{(?:{_TEXT}:{_NUMBER},?+)*+\}}))",
    "inference_ms": _NUMBER,
    "code_version": _TEXT,
    "slices": rf"(?:null|(\{{(?:{_TEXT}:(?:{_TEXT}|{_NUMBER}|null|true|false),?+)*+\}}))",
    "replayed": "(true|false)",
}
_AS_WRITTEN = re.compile(r"\{" + ",".join(f'"{name}":{_FORMS[name]}' for name in Prediction.model_fields) + r"\}")


class Row(NamedTuple):
    """A prediction as a row. values: of COLUMNS, as literals of SQL with commas between them."""

    application: str
    event_id: str
    kafka_partition: int
    kafka_offset: int
    occurred_at: datetime
    replayed: bool
    values: str


def row_of(record: Any) -> Row:
    """The row of a Kafka record. Raises: ValueError, which says why the record is no prediction."""
    if record.value is None:
        raise ValueError("the record has no value")
    row = _as_written(record.value) or of_prediction(Prediction.model_validate_json(record.value))
    if topics.predictions(row.application) != record.topic:
        raise ValueError(f"it is of application {row.application!r}, in topic {record.topic!r}")
    return row


def of_prediction(prediction: Prediction) -> Row:
    """The row of a prediction. Raises: ValueError for a moment that no column can hold."""
    facts = dict(prediction) | {"scores": json_text(prediction.scores), "slices": json_text(prediction.slices)}
    return Row(
        prediction.application,
        prediction.event_id,
        prediction.kafka_partition,
        prediction.kafka_offset,
        prediction.occurred_at,
        prediction.replayed,
        ",".join(literal(facts[name]) for name in COLUMNS),
    )


def literal(value: Any) -> str:
    """A value in SQL, whether or not the server takes a backslash in a text for an escape."""
    if isinstance(value, datetime):
        try:
            value = value.astimezone(UTC).replace(tzinfo=None).isoformat()
        except OverflowError as exc:
            raise ValueError(f"{value} is before the year 1 or after 9999 in UTC") from exc
    if not isinstance(value, str):
        return to_json(value).decode()  # null, true and numbers are written alike
    if "\\" in value:
        return f"_utf8mb4 x'{value.encode().hex()}'"
    return "'" + value.replace("'", "''") + "'"


def _as_written(value: bytes) -> Row | None:
    """The row, if the record is as `Prediction` writes one and no more than that; None where it may not be."""
    try:
        found = _AS_WRITTEN.fullmatch(value.decode())
        if not found:
            return None
        name, event, partition, offset, occurred, received, predicted, version, *answer = found.groups()
        prediction, confidence, number, scores, slices, replayed = answer
        for moment in (received, predicted):
            datetime.fromisoformat(moment)
        if not (_names_once(scores) and _names_once(slices)):
            return None
        occurred_at = datetime.fromisoformat(occurred)
    except ValueError:  # no UTF-8, no such day
        return None
    return Row(
        name,
        event,
        int(partition),
        int(offset),
        occurred_at,
        replayed == "true",
        f"'{name}','{event}',{partition},{offset},'{occurred[:-1]}','{predicted[:-1]}',{version},'{prediction}',"
        f"{confidence},{number},{_text(scores)},{_text(slices)},'{received[:-1]}',{replayed}",
    )


def _names_once(found: str | None) -> bool:
    """Whether no name is in the object twice. Raises: ValueError where a comma is missing or too much."""
    return found is None or len(from_json(found)) == found.count('":')


def _text(found: str | None) -> str:
    return f"'{found}'" if found else "null"
