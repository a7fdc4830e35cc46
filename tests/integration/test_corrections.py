"""A row whose event id is there with other content is a fact of its own: the newest counts, and both can be read."""

import re
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from batch_layer import ingest
from batch_layer.data_history import roll_back
from batch_layer.data_set import DataSet, data_set
from batch_layer.newest import content_hash, newest_examples
from batch_layer.prepare import prepare
from batch_layer.raw_objects import raw_key
from batch_layer.shard_format import read_shard
from batch_layer.taken_back import TakenBack
from deeplambda.adapters import mysql
from deeplambda.adapters.lake import create_tables, current_snapshot
from deeplambda.config import Settings
from tests.integration.test_sources import Bench

_HEADER = "id,x,y,above\n"


@pytest.fixture
def bench(spark: SparkSession, stack: Settings, tmp_path: Path) -> Bench:
    return Bench(spark, stack, tmp_path)


def declare(bench: Bench, event: str = "x: float\n    y: float", glob: str = "*.csv") -> None:
    bench.write(
        event,
        f'sources = (Csv("{glob}", label="above", event_id="id", split="train"), '
        'Csv("test/", label="above", event_id="id", split="test"))\n    features = Tensor("float32", (2,))',
    )


def points(**y_of: float) -> str:
    return _HEADER + "".join(f"{name},1.5,{y},{'yes' if y < 1.5 else 'no'}\n" for name, y in y_of.items())


def newest(bench: Bench, snapshot: int | None = None) -> dict[str, tuple[float, str]]:
    rows = newest_examples(bench.spark, bench.name, snapshot).where("split = 'train'").collect()
    assert len({row["event_id"] for row in rows}) == len(rows)
    return {row["event_id"]: (row["y"], row["label"]) for row in rows}


def test_the_newest_row_of_an_id_counts_and_the_earlier_ones_stay_readable(bench: Bench) -> None:
    declare(bench)
    bench.put(a__csv=points(one=1, two=2, three=3), test_of_t__csv=points(four=4))
    first = bench.ingest()
    assert (first.added, first.corrected) == ({"train": 3, "test": 1}, {})
    before = current_snapshot(bench.spark, f"lake.{bench.name}.examples")

    bench.put(a__csv=points(one=1, two=-2, three=3))
    second = bench.ingest()
    assert (second.added, second.corrected) == ({}, {"train": 1})
    assert newest(bench) == {"one": (1, "yes"), "two": (-2, "yes"), "three": (3, "no")}
    assert newest(bench, before)["two"] == (2, "no")

    facts = [row for row in bench.rows() if row["event_id"] == "two"]
    old, new = sorted(facts, key=lambda row: row["ingested_at"])
    assert (old["y"], old["corrects"]) == (2, None)
    assert (new["y"], new["corrects"]) == (-2, old["ingested_at"])
    assert new["source_sha256"] != old["source_sha256"]
    again = bench.ingest()
    assert (again.added, again.corrected, len(bench.rows())) == ({}, {}, 5)

    bench.put(a__csv=points(one=1, two=2, three=3))
    assert bench.ingest().corrected == {"train": 1}, "what it was at first is news again"
    assert newest(bench)["two"] == (2, "no")
    assert len(bench.rows()) == 6


@pytest.mark.parametrize("sent_to_all", [1, pytest.param(3, marks=pytest.mark.long), 100])
def test_the_same_rows_come_however_many_ids_are_sent_to_all(
    sent_to_all: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(bench)
    bench.put(a__csv=points(one=1, two=2), test_of_t__csv=points(four=4))
    bench.ingest()
    monkeypatch.setattr(ingest, "SENT_TO_ALL", sent_to_all)
    twice = "six,1.5,6.0,no\n" + "six,1.5,-6.0,yes\n"
    bench.put(a__csv=points(one=1, two=-2, three=3, five=5, seven=7) + twice)
    found = bench.ingest()
    assert (found.added, found.corrected, found.duplicates) == ({"train": 4}, {"train": 1}, 1)
    here = {"one": (1, "yes"), "two": (-2, "yes"), "three": (3, "no"), "five": (5, "no"), "seven": (7, "no")}
    assert newest(bench) == here | {"six": (-6, "yes")}
    assert [row["event_id"] for row in bench.rows() if row["corrects"]] == ["two"]


def test_the_query_that_the_documentation_gives_selects_the_newest_rows(bench: Bench) -> None:
    declare(bench)
    bench.put(a__csv=points(one=1, two=2), test_of_t__csv=points(four=4))
    for content in (points(one=-1, two=2), points(one=-2, two=-2)):
        bench.ingest()
        bench.put(a__csv=content)
    bench.ingest()
    page = (Path(__file__).parents[2] / "docs" / "applications.md").read_text()
    (query,) = re.findall(r"```sql\n(SELECT .*?examples.*?)```", page, re.DOTALL)
    found = bench.spark.sql(query.replace("lake.fraud.", f"lake.{bench.name}.")).collect()
    assert sorted(row["y"] for row in found) == [-2, -2, 4]
    assert len(bench.rows()) == 3 + 3


def test_a_data_set_has_the_newest_rows_of_its_snapshot(bench: Bench) -> None:
    declare(bench)
    bench.put(a__csv=points(one=1, two=2), test_of_t__csv=points(four=4))
    bench.ingest()
    pinned = data_set(bench.spark, bench.packed)
    bench.put(a__csv=points(one=-1, two=2))
    bench.ingest()
    corrected = data_set(bench.spark, bench.packed)
    assert corrected.examples == pinned.examples
    assert corrected.id != pinned.id

    def ys(dataset: DataSet) -> list[float]:
        shards = prepare(bench.spark, bench.settings, bench.packed, dataset)
        (features,) = read_shard(bench.store.get(next(each.key for each in shards if each.split == "train")))[
            0
        ].values()
        return sorted(features[:, 1].tolist())

    assert ys(corrected) == [-1, 2]
    assert ys(pinned) == [1, 2]


def test_a_file_that_is_added_corrects_rows_of_those_before_it_by_name(bench: Bench) -> None:
    declare(bench)
    bench.put(**{"2026-01__csv": points(one=1, two=2), "test_of_t__csv": points(four=4)})
    bench.ingest()
    files = {row.file_path for row in bench.spark.table(f"lake.{bench.name}.examples.files").collect()}
    bench.put(**{"2026-02__csv": points(two=-2, five=5, one=1)})
    found = bench.ingest()
    assert (found.passed_over, found.added, found.corrected) == (2, {"train": 1}, {"train": 1})
    table = bench.spark.table(f"lake.{bench.name}.examples.files")
    new = table.where(~table.file_path.isin(files)).agg({"record_count": "sum"}).collect()[0][0]
    assert new == 2, "rows of the file before are not written again"
    assert newest(bench) == {"one": (1, "yes"), "two": (-2, "yes"), "five": (5, "no")}
    again = bench.ingest(whole=True)
    assert (again.passed_over, again.added, again.corrected, again.duplicates) == (0, {}, {}, 2)


def test_a_file_that_is_added_corrects_no_row_of_those_after_it_by_name(bench: Bench) -> None:
    declare(bench)
    bench.put(**{"2026-02__csv": points(one=1, two=2), "test_of_t__csv": points(four=4)})
    bench.ingest()
    bench.put(**{"2026-04__csv": points(one=1, six=6)})
    assert bench.ingest().passed_over == 2
    bench.put(**{"2026-03__csv": points(one=-1, two=-2, five=5)})
    found = bench.ingest()
    assert (found.objects, found.added, found.corrected) == (4, {"train": 1}, {"train": 1})
    assert newest(bench) == {"one": (1, "yes"), "two": (-2, "yes"), "five": (5, "no"), "six": (6, "no")}
    assert bench.ingest().objects == 0


def test_all_objects_are_read_once_one_is_gone_or_a_table_is_new(bench: Bench) -> None:
    declare(bench)
    bench.put(a__csv=points(one=1, two=2), b__csv=points(three=3), test_of_t__csv=points(four=4))
    assert bench.ingest().objects == 3
    bench.store.delete([raw_key(bench.name, "b.csv")])
    assert [bench.ingest().objects, bench.ingest().objects] == [2, 0]
    before = bench.rows()
    bench.spark.sql(f"DROP TABLE lake.{bench.name}.examples")
    assert bench.ingest().added == {"train": 2, "test": 1}
    assert [row["event_id"] for row in bench.rows()] == [row["event_id"] for row in before if row["y"] != 3]


@pytest.mark.long
def test_what_a_person_did_to_the_table_has_all_objects_read_once(bench: Bench) -> None:
    declare(bench)
    table, engine = f"lake.{bench.name}.examples", mysql.engine(bench.settings, "platform")
    snapshots = []
    for y in (1, -1):
        bench.put(a__csv=points(one=y, two=2), test_of_t__csv=points(four=4))
        bench.ingest()
        snapshots.append(current_snapshot(bench.spark, table))
    roll_back(bench.spark, engine, bench.name, snapshots[0] or 0, who="a test", why="to see what is read")
    bench.put(a__csv=points(one=1, two=2))
    assert bench.ingest().added == {}
    roll_back(bench.spark, engine, bench.name, snapshots[1] or 0, who="a test", why="forward again")
    assert bench.ingest().corrected == {"train": 1}, "of files that are as the last ingest left them"
    assert newest(bench)["one"] == (1, "yes")
    assert bench.ingest().objects == 0


@pytest.mark.long
def test_what_was_taken_back_stays_so_in_every_state_of_a_file_that_grew(bench: Bench) -> None:
    declare(bench)
    engine = mysql.engine(bench.settings, "platform")
    bench.put(a__csv=points(one=1, two=2), test_of_t__csv=points(four=4))
    bench.ingest()
    first = current_snapshot(bench.spark, f"lake.{bench.name}.examples") or 0
    grown = points(one=1, two=2, three=3)
    bench.put(a__csv=grown)
    bench.ingest()
    twice = "six,1,6.0,yes\n" + "six,1,-6.0,no\n"
    bench.put(a__csv=grown + "five,1,5.0,yes\n" + twice)
    assert bench.ingest().added == {"train": 2}
    assert newest(bench).keys() == {"one", "two", "three", "five", "six"}
    roll_back(bench.spark, engine, bench.name, first, who="a test", why="none of what came later")
    assert bench.ingest().added == {}, "neither of the file's last state, nor of the one before, nor an earlier copy"
    assert newest(bench).keys() == {"one", "two"}
    bench.put(a__csv=grown)
    assert bench.ingest().added == {}, "that state was taken back as well"
    bench.put(a__csv=points(one=1, two=2, three=-3))
    assert bench.ingest().added == {"train": 1}, "a file that is mended is welcome"


def test_what_was_taken_back_stays_so_after_a_model_within_the_event_has_a_further_field(bench: Bench) -> None:
    def declare(further: str = "") -> None:
        place = f"class Place(__import__('pydantic').BaseModel):\n        town: str{further}"
        bench.write(
            f"{place}\n\n    x: float\n    y: float\n    place: Place | None = None",
            'sources = (JsonLines("*.jsonl", label="above", event_id="id", split="train"), '
            'JsonLines("a.jsonl", label="above", columns={"x": "y"}, split="test"))',
        )

    def row(name: str) -> str:
        ulm = '{"town": "Ulm"}'
        return f'{{"id": "{name}", "x": 1.5, "y": 1.0, "above": "yes", "place": {ulm}}}\n'

    declare()
    bench.put(a__jsonl=row("one"))
    bench.ingest()
    first = current_snapshot(bench.spark, f"lake.{bench.name}.examples") or 0
    bench.put(b__jsonl=row("two"))
    assert bench.ingest().added == {"train": 1}
    wrong, before = data_set(bench.spark, bench.packed), TakenBack(bench.spark, bench.name)
    assert before.is_current()
    engine = mysql.engine(bench.settings, "platform")
    roll_back(bench.spark, engine, bench.name, first, who="a test", why="it was wrong")
    assert (before.is_current(), before.of(wrong)) == (False, None)
    declare("\n        state: str | None = None")
    again = bench.ingest()
    assert (again.added, again.corrected) == ({}, {})
    bench.put(c__jsonl=row("three"))
    assert bench.ingest().added == {"train": 1}
    taken_back = TakenBack(bench.spark, bench.name)
    assert taken_back.of(wrong) == "examples of its data set were rolled back"
    assert taken_back.of(data_set(bench.spark, bench.packed)) is None


def test_each_ingest_is_after_those_before_whatever_the_clock_says(bench: Bench) -> None:
    declare(bench)
    bench.put(a__csv=points(one=1, two=2), test_of_t__csv=points(four=4))
    bench.ingest()
    bench.spark.sql(f"UPDATE lake.{bench.name}.examples SET ingested_at = ingested_at + INTERVAL 1 HOUR")
    for changed in (points(one=-1, two=2), points(one=-1, two=-2)):
        bench.put(a__csv=changed)
        assert bench.ingest().corrected == {"train": 1}
    assert newest(bench) == {"one": (-1, "yes"), "two": (-2, "yes")}
    times = [row["ingested_at"] for row in bench.rows() if row["corrects"]]
    assert len(set(times)) == 2, "else a rollback could not tell one ingest's rows from another's"


def test_a_further_field_corrects_the_rows_that_have_it_and_no_others(bench: Bench) -> None:
    def rows(city: str = "", label: str = "yes") -> str:
        line = '{{"id": "{}", "x": 1.5, "y": 1.0, "tags": ["a", null], "above": "{}"{}}}\n'
        return line.format("one", label, city) + line.format("two", label, "")

    def declare(event: str) -> None:
        bench.write(
            f"x: float\n    y: float\n    tags: list[str | None]{event}",
            'sources = (JsonLines("a.jsonl", label="above", event_id="id", split="train"), '
            'JsonLines("a.jsonl", label="above", columns={"x": "y"}, split="test"))',
        )

    declare("")
    bench.put(a__jsonl=rows())
    assert bench.ingest().added == {"train": 2, "test": 1}
    declare("\n    city: str | None = None")
    again = bench.ingest()
    assert (again.added, again.corrected) == ({}, {}), "what is not in the file changes neither content nor id"
    bench.put(a__jsonl=rows(', "city": "Ulm"'))
    more = bench.ingest()
    assert (more.added, more.corrected) == ({"test": 1}, {"train": 1})


def test_the_same_content_has_one_hash_whatever_fields_came_later(spark: SparkSession) -> None:
    lake = "n DOUBLE, place STRUCT<town: STRING, state: STRING>, at TIMESTAMP, tags ARRAY<STRING>, of MAP<STRING, INT>"
    fields = spark.createDataFrame([], lake).schema.fields

    def hash_of(**changed: str) -> int:
        columns = {
            "n": "1D",
            "place": "NAMED_STRUCT('state', CAST(NULL AS STRING), 'town', 'Ulm')",
            "at": "TIMESTAMP '2026-01-01 00:00:00.000001'",
            "tags": "ARRAY('a', NULL)",
            "of": "MAP('a', 1)",
        } | changed
        row = spark.sql("SELECT " + ", ".join(f"{value} AS {name}" for name, value in columns.items()))
        return int(row.select(content_hash(fields)).collect()[0][0])

    assert hash_of(n="1") == hash_of() == hash_of(place="NAMED_STRUCT('town', 'Ulm', 'state', CAST(NULL AS STRING))")
    others = [
        hash_of(),
        hash_of(n="CAST('NaN' AS DOUBLE)"),
        hash_of(n="CAST(NULL AS DOUBLE)"),
        hash_of(place="NAMED_STRUCT('state', 'Ulm', 'town', CAST(NULL AS STRING))"),
        hash_of(at="TIMESTAMP '2026-01-01 00:00:00.000002'"),
        hash_of(tags="ARRAY(NULL, 'a')"),
        hash_of(tags="ARRAY()"),
        hash_of(tags="CAST(NULL AS ARRAY<STRING>)"),
        hash_of(of="MAP('a', 2)"),
    ]
    assert len(set(others)) == len(others)


def test_a_table_of_an_earlier_release_is_read_and_corrected(bench: Bench) -> None:
    declare(bench)
    create_tables(bench.spark, bench.packed.load())
    table = f"lake.{bench.name}.examples"
    bench.spark.sql(f"ALTER TABLE {table} DROP COLUMN corrects")
    bench.spark.sql(
        f"INSERT INTO {table} VALUES ('one', 'train', 1.5D, 1D, 'yes', 'a.csv', 'hash', 'code', TIMESTAMP '2026-01-01')"
    )
    before = current_snapshot(bench.spark, table)
    bench.put(a__csv=points(one=0.5, two=2), test_of_t__csv=points(four=4))
    found = bench.ingest()
    assert (found.added, found.corrected) == ({"train": 1, "test": 1}, {"train": 1})
    assert newest(bench) == {"one": (0.5, "yes"), "two": (2, "no")}
    assert newest(bench, before) == {"one": (1, "yes")}
