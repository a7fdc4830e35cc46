"""What the check makes of cells, JSON and Parquet; an integration test holds it to what ingest makes of them."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from deeplambda.testing.read_values import cell, of_json, of_parquet

TIME = pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1", pa.bool_(), True),
        (" No", pa.bool_(), False),
        (" 5", pa.int64(), 5),
        ("5.0", pa.int64(), 5),
        ("1e3", pa.float64(), 1000.0),
        ("2024-01-31", pa.date32(), date(2024, 1, 31)),
        (" as it is", pa.string(), " as it is"),
        ("1700000000", TIME, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("250000000000", TIME, datetime(1977, 12, 3, 12, 26, 40, tzinfo=UTC)),
        ("20240131", TIME, datetime(2024, 1, 31, tzinfo=UTC)),
    ],
)
def test_a_cell_says_a_value_of_its_column(text: str, kind: pa.DataType, value: Any) -> None:
    assert cell(text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [("2", pa.bool_()), ("5.5", pa.int64()), ("1_000", pa.int64()), ("2024", TIME), ("20240131100000", TIME)],
)
def test_what_a_cell_says_in_part_is_refused(text: str, kind: pa.DataType) -> None:
    with pytest.raises(ValueError, match=r"."):
        cell(text, kind)


def test_a_text_of_json_is_what_stands_there_and_other_fields_are_taken_strictly() -> None:
    assert of_json(5, pa.string()) == "5"
    assert of_json({"a": [1, True]}, pa.string()) == '{"a": [1, true]}'
    assert of_json("5", pa.int64()) == "5", "which the event refuses"
    assert of_json(250_000_000_000, TIME).year == 1977
    with pytest.raises(ValueError, match="'5'"):
        of_json(5, TIME)


def test_a_typed_column_becomes_another_where_it_says_all() -> None:
    assert of_parquet(5, pa.string()) == "5"
    assert of_parquet(float("nan"), pa.int64()) is None
    assert of_parquet(5.0, pa.int64()) == of_parquet(Decimal("5.00"), pa.int64()) == 5
    assert of_parquet(1, pa.bool_()) is True
    assert of_parquet(86_400, TIME) == datetime(1970, 1, 2, tzinfo=UTC)
    for value, kind in ((5.5, pa.int64()), (2, pa.bool_()), (datetime(2024, 1, 1, 10), pa.date32())):
        with pytest.raises(ValueError, match="is no"):
            of_parquet(value, kind)
