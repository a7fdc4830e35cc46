"""Sources as users declare them: what a path means, which split a row is in, what is refused where it is written."""

from datetime import UTC, date, datetime

import pytest

from deeplambda.errors import ConfigurationError
from deeplambda.sources import (
    ByGroup,
    ByHash,
    BySource,
    ByTime,
    Csv,
    Images,
    Lines,
    Source,
    content_id,
    matched,
    moment,
    split_names,
)

IDS = [f"event-{number}" for number in range(10_000)]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("a.csv", ["a.csv"]),
        ("*.csv", ["a.csv", "b.csv"]),
        ("2018-08-*.parquet", ["2018-08-01.parquet", "2018-08-02.parquet"]),
        ("2018-08-0[2-9].parquet", ["2018-08-02.parquet"]),
        ("pets/", ["pets/cat/1.png", "pets/cat/old/2.png", "pets/dog/1.png"]),
        ("pets/*/1.png", ["pets/cat/1.png", "pets/dog/1.png"]),
        ("pets/*", []),
        ("_log.csv", ["_log.csv"]),
    ],
)
def test_a_path_is_a_name_a_prefix_or_a_glob(path: str, meant: list[str]) -> None:
    months = ["2018-07-31.parquet", "2018-08-01.parquet", "2018-08-02.parquet"]
    pets = ["pets/cat/1.png", "pets/cat/old/2.png", "pets/dog/1.png", "pets/.hidden/1.png", "pets/cat/_temporary"]
    assert matched(path, ["a.csv", "b.csv", "_log.csv", ".b.csv", *months, *pets]) == meant


@pytest.mark.parametrize("path", ["", "/a.csv", "../a.csv", "a//b.csv", "a/**/b.csv"])
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="a source's path"):
        Csv(path)


def test_a_split_that_is_none_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigurationError, match="'tset'; choose from train, validation, test"):
        Lines("a.txt", split="tset")


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


def test_a_source_that_names_its_split_keeps_it_under_every_rule() -> None:
    train, test = Lines("a"), Lines("b", split="test")
    assert split_names((train, test), ByHash(train=0.9, validation=0.1, test=0)) == ("train", "validation", "test")


def test_a_source_without_a_split_and_a_split_without_a_source_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"the source b\.csv names no split"):
        split_names((Lines("a", split="train"), Csv("b.csv")), BySource())
    with pytest.raises(ConfigurationError, match="no source is for the split 'test'"):
        split_names((Source(split="train", objects=("a",)),), BySource())


def test_equal_rows_have_equal_ids_and_others_others() -> None:
    at = datetime(2018, 7, 25, tzinfo=UTC)
    rows = [
        content_id({"text": "good", "stars": 1.0}, "yes"),
        content_id({"text": "good", "stars": 2.0}, "yes"),
        content_id({"text": "good", "stars": 1.0}, "no"),
        content_id({"text": "good", "stars": 1.0}, None),
        content_id({"text": b"good", "stars": 1.0}, "yes"),
        content_id({"text": "good", "stars": 1.0}, "yes", at),
    ]
    assert len(set(rows)) == len(rows)
    assert rows[0] == content_id({"stars": 1.0, "text": "good"}, "yes") == "01ad6438c2dd842770d4d15555bfe181"


def test_a_row_with_a_time_has_an_id() -> None:
    at = datetime(2018, 7, 25, tzinfo=UTC)
    assert content_id({"at": at}, None) == content_id({"at": at}, None) != content_id({"at": at.date()}, None)


def test_an_image_is_labelled_by_its_folder() -> None:
    assert Images("pets/").label_of("pets/cat/old/2.png") == "cat"
    assert Images("pets/").label_of("pets/2.png") is None
    assert Images("*/[cd]*/*.png").label_of("pets/cat/1.png") == "cat"
