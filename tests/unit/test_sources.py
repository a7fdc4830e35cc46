"""Sources as users declare them: what a path means, what is refused where it is written."""

from datetime import UTC, datetime

import pytest

from deeplambda.errors import ConfigurationError
from deeplambda.sources import Csv, Images, Lines, Source, content_id, matched, split_names
from deeplambda.splits import ByHash, BySource


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


def test_a_field_that_came_later_leaves_the_ids_of_rows_without_it() -> None:
    old = content_id({"text": "good", "place": {"town": "Ulm"}}, None)
    assert content_id({"text": "good", "stars": None, "place": {"town": "Ulm", "state": None}}, None) == old
    assert content_id({"text": "good", "stars": 1.0, "place": {"town": "Ulm"}}, None) != old


def test_raw_objects_are_read_together_by_name_and_one_by_one_under_a_prefix_or_glob() -> None:
    names = ["days/1", "days/2", "images", "labels"]
    pair = Source(objects=("images", "labels"), split="train")
    assert pair.read_together(names) == [pair]
    for path in ("days/", "days/?"):
        found = Source(objects=(path,), split="test").read_together(names)
        assert found == [Source(objects=("days/1",), split="test"), Source(objects=("days/2",), split="test")]
    with pytest.raises(ConfigurationError, match=r"'days/' beside others; .* alone"):
        Source(objects=("images", "days/"))


def test_a_row_with_a_time_has_an_id() -> None:
    at = datetime(2018, 7, 25, tzinfo=UTC)
    assert content_id({"at": at}, None) == content_id({"at": at}, None) != content_id({"at": at.date()}, None)


def test_an_image_is_labelled_by_its_folder() -> None:
    assert Images("pets/").label_of("pets/cat/old/2.png") == "cat"
    assert Images("pets/").label_of("pets/2.png") is None
    assert Images("*/[cd]*/*.png").label_of("pets/cat/1.png") == "cat"
