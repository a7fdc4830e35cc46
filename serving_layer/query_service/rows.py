"""Rows as JSON can hold them, within the limits of one answer."""

import math
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Protocol

ANSWER_LIMIT_BYTES = 8 * 1024 * 1024
"""Of all values as text: what the service holds in memory for one answer, and MySQL for a kept one."""
BATCH_BYTES, BATCH_ROWS, _FIRST_ROWS = 1024 * 1024, 1_000, 10
_CELL_BYTES = 8
"""Of each value beside its text: an empty one takes its place too."""


class Cursor(Protocol):
    """What `fetched` needs of a cursor."""

    arraysize: int

    def fetchmany(self) -> list[Sequence[Any]]:
        """The next `arraysize` rows; fewer, or none, at the end."""


def cell(value: Any) -> Any:
    """One value as JSON can hold it: see `messages.Answer`."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value).replace("nan", "NaN").replace("inf", "Infinity")
        case Decimal():
            return int(value) if value == value.to_integral_value() and value.as_tuple().exponent == 0 else str(value)
        case datetime():
            return (
                (value if value.tzinfo else value.replace(tzinfo=UTC))
                .astimezone(UTC)
                .isoformat()
                .replace("+00:00", "Z")
            )
        case date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes() | bytearray():
            return b64encode(value).decode()
    return str(value)


def fetched(cursor: Cursor) -> Iterator[Sequence[Any]]:
    """The rows of a DB-API cursor that asks its server for `arraysize` of them at once, all of which lie in memory: few
    at first, then as many as would be BATCH_BYTES if they were as the last, up to BATCH_ROWS.
    """
    cursor.arraysize = _FIRST_ROWS
    while rows := cursor.fetchmany():
        values = [value for row in rows for value in row]
        size_bytes = sum(_CELL_BYTES + (len(value) if isinstance(value, (str, bytes)) else 0) for value in values)
        yield from rows
        fitting = len(rows) * BATCH_BYTES // max(1, size_bytes)
        cursor.arraysize = max(1, min(fitting, 4 * cursor.arraysize, BATCH_ROWS))


def take(rows: Iterable[Sequence[Any]], row_cap: int) -> tuple[list[list[Any]], bool]:
    """The first `row_cap` rows as JSON can hold them, fewer when they are large; and whether there were more."""
    taken: list[list[Any]] = []
    size_bytes = 0
    for row in rows:
        if len(taken) == row_cap:
            return taken, True
        cells = [cell(value) for value in row]
        size_bytes += sum(_CELL_BYTES + (len(value) if isinstance(value, str) else 0) for value in cells)
        if size_bytes > ANSWER_LIMIT_BYTES:
            return taken, True
        taken.append(cells)
    return taken, False
