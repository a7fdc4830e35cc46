"""What stands in a table as values of an event's columns, as `batch_layer/readers.py` has Spark read them."""

import json
import re
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

from deeplambda.sources import FALSE, TRUE
from deeplambda.splits import WHOLE_NUMBER, moment


def cell(text: str, kind: pa.DataType) -> Any:
    """What a cell says as a value of a column, as `batch_layer/readers.py` has Spark read it. Raises: ValueError."""
    said = text.strip()
    if pa.types.is_timestamp(kind):
        return moment(said)
    if pa.types.is_boolean(kind):
        return (TRUE + FALSE).index(said.lower()) < len(TRUE)
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and "_" in said:
        raise ValueError(f"{text!r} is no number")
    if pa.types.is_integer(kind):
        return int(re.sub(WHOLE_NUMBER, r"\1", said))
    if pa.types.is_floating(kind):
        return float(said)
    return date.fromisoformat(said) if pa.types.is_date(kind) else text


def of_json(value: Any, kind: pa.DataType) -> Any:
    """What stands in JSON as a value of a column: a text field takes all as it stands there, other ones their own type.

    Raises: ValueError.
    """
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if pa.types.is_timestamp(kind) or (pa.types.is_date(kind) and isinstance(value, str)):
        return cell(str(value), kind)
    return value


def of_parquet(value: Any, kind: pa.DataType) -> Any:
    """A value of a typed column as one of another type, where this says all of it. Raises: ValueError."""
    if value is None or (value != value and not pa.types.is_floating(kind)):  # NaN: where integers have gaps
        return None
    if isinstance(value, str):
        return cell(value, kind)
    if pa.types.is_string(kind):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if pa.types.is_timestamp(kind):
        return moment(value)
    if pa.types.is_floating(kind) and isinstance(value, Decimal):
        return float(value)
    if isinstance(value, (int, float, Decimal)) and (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        found = bool(value) if pa.types.is_boolean(kind) else int(value)
        if found != value:
            raise ValueError(f"{value!r} is no {kind}")
        return found
    if pa.types.is_date(kind) and isinstance(value, datetime):
        if value.time() != time():
            raise ValueError(f"{value!r} is no day")
        return value.date()
    return value
