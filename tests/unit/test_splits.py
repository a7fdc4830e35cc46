"""Splits as users declare them: which one a row is in, what is refused where it is written."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from deeplambda.errors import ConfigurationError
from deeplambda.splits import ByGroup, ByHash, ByTime, group_text, moment

IDS = [f"event-{number}" for number in range(10_000)]


def test_shares_are_kept_and_a_row_never_moves() -> None:
    rule = ByHash(train=0.8, validation=0.1, test=0.1)
    splits = [rule.split_of(event_id, None) for event_id in IDS]
    assert [round(splits.count(name) / len(IDS), 2) for name in ("train", "validation", "test")] == [0.8, 0.1, 0.1]
    assert [rule.split_of(event_id, None) for event_id in IDS] == splits
    assert (rule.split_of("event-0", None), rule.split_of("event-8", None)) == (splits[0], splits[8])


def test_shares_that_are_not_given_divide_the_rest() -> None:
    assert ByHash() == ByHash(train=0.8, validation=0.1, test=0.1)
    assert ByHash(train=0.75, test=0.25).names == ("train", "test")


@pytest.mark.parametrize("shares", [{"train": 0.9, "validation": 0.1, "test": 0.1}, {"train": -0.5}, {"train": 1.5}])
def test_shares_that_do_not_sum_to_one_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="sum to 1"):
        ByHash(**shares)


def test_a_group_is_in_one_split_whatever_the_event() -> None:
    rule = ByGroup("engine", train=0.5, validation=0.2, test=0.3)
    of_groups = {engine: {rule.split_of(event_id, engine) for event_id in IDS[:9]} for engine in range(60)}
    assert {len(splits) for splits in of_groups.values()} == {1}
    assert set.union(*of_groups.values()) == {"train", "validation", "test"}
    with pytest.raises(ValueError, match="'engine'"):
        rule.split_of("event", None)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((5, 5.0, "5", "5.0", Decimal("5.00")), "5"),
        ((10**16, 1e16), "10000000000000000"),
        ((2.5, "2.5", Decimal("2.5")), "2.5"),
        (("1.10",), "1.10"),
        (("007",), "007"),
        ((float("inf"),), "inf"),
        ((Decimal("Infinity"),), "Infinity"),
    ],
)
def test_a_group_is_one_whichever_type_its_column_has(values: tuple[Any, ...], text: str) -> None:
    assert {group_text(value) for value in values} == {text}
    rule = ByGroup("engine", train=0.5, test=0.5)
    assert {rule.split_of("event", value) for value in values} == {rule.split_of("event", text)}


def test_an_interval_has_its_first_moment_and_not_its_last() -> None:
    rule = ByTime("at", train=("2018-07-25", "2018-08-01"), test=("2018-08-08", "2018-08-15"))
    assert rule.split_of("e", "2018-07-25T00:00:00Z") == "train"
    assert rule.split_of("e", datetime(2018, 7, 31, 23, 59)) == "train"
    assert rule.split_of("e", date(2018, 8, 1)) is None
    assert rule.split_of("e", "2018-08-15T01:00:00+02:00") == "test"
    assert rule.names == ("train", "test")
    with pytest.raises(ValueError, match="None is no time"):
        rule.split_of("e", None)


@pytest.mark.parametrize("test", [("2018-07-31", "2018-08-15"), ("2018-08-15", "2018-08-08"), ("soon", "later")])
def test_intervals_that_overlap_or_are_none_are_refused(test: tuple[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="interval"):
        ByTime("at", train=("2018-07-25", "2018-08-01"), test=test)


def test_a_time_without_a_zone_is_in_utc() -> None:
    assert moment("2018-07-25 10:00:00") == datetime(2018, 7, 25, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (1_700_000_000, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (1_700_000_000_000, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("1700000000.5", datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC)),
        (-1.5, datetime(1969, 12, 31, 23, 59, 58, 500_000, tzinfo=UTC)),
        ("20240131", datetime(2024, 1, 31, tzinfo=UTC)),
    ],
)
def test_a_number_is_a_time_in_seconds_or_milliseconds(value: Any, at: datetime) -> None:
    assert moment(value) == at


@pytest.mark.parametrize("value", ["2024", "202401", "20240131100000", "1712", True, 1e300, float("nan")])
def test_what_may_be_several_times_is_none(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        moment(value)
