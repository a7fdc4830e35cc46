"""What a prediction tells of its event's slices."""

from datetime import UTC, datetime
from enum import Enum

from deeplambda.application import Event
from deeplambda.records.predictions import json_text, slices_of
from examples.digits.application import Digits


class Country(Enum):
    CH = "ch"


class Sold(Event):
    shop: str
    country: Country = Country.CH
    amount: float
    at: datetime
    regular: bool | None = None


SOLD = Sold(
    event_id="a",
    occurred_at=datetime(2026, 1, 2, tzinfo=UTC),
    shop="x" * 300,
    amount=1.5,
    at=datetime(2026, 1, 2, tzinfo=UTC),
)


def test_values_are_as_json_has_them_and_bounded() -> None:
    class Sales(Digits):
        slices = ("shop", "amount", "at", "regular", "country")

    found = slices_of(Sales(), SOLD)
    assert found == {
        "shop": "x" * 100,
        "amount": 1.5,
        "at": "2026-01-02 00:00:00+00:00",
        "regular": None,
        "country": "ch",
    }
    assert json_text(found) is not None


def test_without_declared_slices_there_are_none() -> None:
    assert slices_of(Digits(), SOLD) is None
    assert json_text(None) is None
