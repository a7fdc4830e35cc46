"""Values of both stores as JSON can hold them."""

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from serving_layer.query_service.rows import ANSWER_LIMIT_BYTES, BATCH_BYTES, BATCH_ROWS, cell, fetched, take


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (2**63, 2**63),
        (0.1, 0.1),
        (math.nan, "NaN"),
        (-math.inf, "-Infinity"),
        (Decimal("0.9880"), "0.9880"),
        (Decimal(10_000), 10_000),
        (Decimal("1E+3"), "1E+3"),
        (datetime(2026, 1, 2, 3, 4, 5, 6), "2026-01-02T03:04:05.000006Z"),
        (datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T01:00:00Z"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        (date(2026, 1, 2), "2026-01-02"),
        (timedelta(minutes=1, milliseconds=5), 60.005),
        (b"\x00\xff", "AP8="),
        ("ünï", "ünï"),
        ([1], "[1]"),
    ],
)
def test_a_value_is_shown_without_loss(value: Any, shown: Any) -> None:
    assert cell(value) == shown


def test_an_answer_that_fits_is_whole() -> None:
    assert take([(1, "a"), (2, "b")], row_cap=2) == ([[1, "a"], [2, "b"]], False)


def test_rows_beyond_the_cap_are_cut_and_said_to_be() -> None:
    assert take(((n,) for n in range(10**9)), row_cap=3) == ([[0], [1], [2]], True)


def test_rows_that_are_too_large_together_are_cut() -> None:
    rows, truncated = take((("x" * (ANSWER_LIMIT_BYTES // 5),) for _ in range(10)), row_cap=10)
    assert truncated
    assert len(rows) == 4


def test_many_empty_texts_are_large_too() -> None:
    rows, truncated = take((("",) * 1_000 for _ in range(10_000)), row_cap=10_000)
    assert truncated
    assert len(rows) == ANSWER_LIMIT_BYTES // 8_000


class Cursor:
    """Of rows of one text each; keeps the bytes of each batch that was asked for."""

    def __init__(self, sizes_bytes: list[int]) -> None:
        self.arraysize, self.sizes_bytes, self.batches = 1_000, sizes_bytes, list[list[int]]()

    def fetchmany(self) -> list[tuple[str]]:
        batch, self.sizes_bytes = self.sizes_bytes[: self.arraysize], self.sizes_bytes[self.arraysize :]
        self.batches.append(batch)
        return [("x" * size,) for size in batch]


def test_large_rows_are_fetched_few_at_a_time_and_small_ones_many() -> None:
    large, small = Cursor([300_000] * 50), Cursor([10] * 5_000)
    assert len(list(fetched(large))) == 50
    assert max(map(sum, large.batches[1:])) <= BATCH_BYTES
    assert [len(row[0]) for row in fetched(small)] == [10] * 5_000
    assert max(map(len, small.batches)) == BATCH_ROWS
    assert len(small.batches[0]) < 50
