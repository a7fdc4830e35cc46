"""New rows count once they have passed their audit, and what a person got wrong is undone."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest
import typer
from pydantic_core import to_json
from pyspark.sql import SparkSession
from rich.console import Console, ConsoleDimensions
from sqlalchemy import Engine, insert, select
from typer.testing import CliRunner

from batch_layer import held_rows
from batch_layer.commands import data
from batch_layer.console import PipelineConsole
from batch_layer.counted_events import counted_events
from batch_layer.data_history import difference, drop_held, history, impact, publish_held, roll_back
from batch_layer.event_quality import measure_day, measure_events
from batch_layer.pipeline import run_pipeline
from batch_layer.raw_objects import raw_key
from batch_layer.recompute import recompute
from batch_layer.withdrawals import Choice, withdraw
from deeplambda.adapters import mysql
from deeplambda.adapters.lake import create_tables, current_snapshot, read_snapshot
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import BadInput, Conflict, HeldBack, NotReady
from deeplambda.loading import pack_application
from deeplambda.state import registry
from deeplambda.state.data_changes import changes
from deeplambda.state.tables import LIVE_ANSWERS, REALTIME_PREDICTIONS
from tests.integration.blobs import lifecycle
from tests.integration.own_model_service import OwnService, model_of
from tests.integration.test_recompute import archive, batch_view, image
from tests.integration.test_sources import Bench
from tests.traffic import digit_event
from tests.unit.batch_layer.test_gate import card

HEADER = "id,x,y,above\n"
SOURCES = (
    'sources = (Csv("*.csv", label="above", event_id="id", split="train"), '
    'Csv("test/", label="above", event_id="id", split="test"))'
)


@pytest.fixture
def bench(spark: SparkSession, stack: Settings, tmp_path: Path) -> Bench:
    return Bench(spark, stack, tmp_path)


@pytest.fixture
def engine(stack: Settings) -> Engine:
    return mysql.engine(stack, "platform")


def points(name: str, rows: int, label: str | None = None) -> str:
    """Rows of a table; the label says whether x is above 0, unless another is given."""
    xs = [(n % 40 - 19.5) / 10 for n in range(rows)]
    return HEADER + "".join(
        f"{name}-{n},{x},{n % 7 / 7},{label or ('yes' if x > 0 else 'no')}\n" for n, x in enumerate(xs)
    )


def said(commands: typer.Typer, *words: str) -> str:
    """What a command prints, in one line."""
    with patch.object(Console, "size", ConsoleDimensions(240, 25)):  # a worker of the tests has 80 columns
        done = CliRunner().invoke(commands, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def quality(bench: Bench) -> list[dict[str, Any]]:
    return [row.asDict() for row in bench.spark.table(f"lake.{bench.name}.data_quality").collect()]


def test_rows_that_break_an_expectation_wait_and_what_a_person_decides_can_be_undone(
    bench: Bench, engine: Engine
) -> None:
    bench.write("x: float\n    y: float\n    city: str | None = None", SOURCES)
    bench.put(a__csv=points("a", 80), test_of_t__csv=points("t", 80))
    assert bench.ingest().added == {"train": 80, "test": 80}
    first = current_snapshot(bench.spark, f"lake.{bench.name}.examples")
    assert first is not None
    figures = {(row["measure"], row["field"]): (row["value"], row["rows"]) for row in quality(bench)}
    assert figures["nulls", "city"] == (1, 160)
    assert figures["leaks", None] == (1, 160), "the same points are in train and test"
    assert figures["unreadable", None] == (0, 2)
    assert figures["refused", None] == (0, 160)
    (told,) = lifecycle(bench.settings, lambda fact: fact["application"] == bench.name)
    assert (told["type"], told["branch"], len(told["measures"])) == ("QualityMeasured", None, len(figures))

    bench.put(b__csv=points("b", 60, label="yes"))
    with pytest.raises(HeldBack, match=r"held back on the branch (\S+): label_shift is 0\.\d+ over 60 rows"):
        bench.ingest()
    assert current_snapshot(bench.spark, f"lake.{bench.name}.examples") == first, "readers stay with the rows before"
    assert len(bench.rows()) == 160
    ((branch, snapshot),) = held_rows.branches(bench.spark, bench.name).items()
    assert read_snapshot(bench.spark, f"lake.{bench.name}.examples", snapshot).count() == 220
    with pytest.raises(BadInput, match="no new rows"):
        publish_held(bench.spark, engine, bench.name, "ingest-elsewhere", who="ada", why="a try")

    published = publish_held(bench.spark, engine, bench.name, branch, who="ada", why="they are all above")
    assert (published.rows, published.snapshot, published.previous) == (60, snapshot, first)
    assert len(bench.rows()) == 220
    assert held_rows.branches(bench.spark, bench.name) == {}
    learned = card(1, 0.9).model_copy(update={"application": bench.name, "snapshot": snapshot})
    registry.publish(engine, bench.name, "run-1", lambda version: learned)
    (found,) = difference(bench.spark, bench.name, first, snapshot)
    assert (found.kind, found.split, found.label, found.rows) == ("added", "train", "yes", 60)
    home = str(bench.home)
    assert "added │ train │ yes │ 60 │ b-0, b-9" in said(data, "diff", home, str(first), str(snapshot))
    assert "the same examples" in said(data, "diff", home, str(first), str(first))
    assert f"{bench.name}/1 learned from it" in said(data, "impact", home, str(snapshot))
    assert "nulls │ city │ 1 │ 160" in said(data, "quality", home, "--no-measure")
    assert impact(bench.spark, bench.name, snapshot, [learned]) == [1]
    assert impact(bench.spark, bench.name, first, [learned]) == [1], "it saw the first rows as well"

    undone = roll_back(bench.spark, engine, bench.name, first, who="bob", why="they were not")
    assert (undone.rows, undone.versions, undone.previous) == (60, [1], snapshot)
    assert len(bench.rows()) == 160
    assert bench.ingest().added == {}, "what was taken back does not come again"
    assert len(bench.rows()) == 160
    marks = {each.id: (each.current, each.versions) for each in history(bench.spark, bench.name, [learned])}
    assert (marks[first], marks[snapshot]) == ((True, []), (False, [1]))
    told = said(data, "history", home)
    assert f"★ │ {first} │" in told
    assert f"bob │ rolled_back examples │ 60 │ {first} │ {snapshot} │ they were not" in told

    roll_back(bench.spark, engine, bench.name, snapshot, who="bob", why="they were, after all")
    assert len(bench.rows()) == 220

    bench.spark.sql(f"ALTER TABLE lake.{bench.name}.examples CREATE BRANCH `ingest-killed`")
    with pytest.raises(BadInput, match="count already"):
        drop_held(bench.spark, engine, bench.name, "ingest-killed", who="ada", why="it was killed once published")
    assert held_rows.branches(bench.spark, bench.name) == {}

    bench.put(c__csv=points("c", 90, label="no"))
    with pytest.raises(HeldBack):
        bench.ingest()
    (branch,) = held_rows.branches(bench.spark, bench.name)
    drop_held(bench.spark, engine, bench.name, branch, who="ada", why="a broken export")
    assert bench.ingest().added == {}, "nor does what was dropped"
    bench.put(c__csv=points("c", 90))
    assert bench.ingest().added == {"train": 90}, "all rows of the corrected file come"

    bench.put(d__csv=points("d", 90, label="no"))
    with pytest.raises(HeldBack):
        bench.ingest()
    bench.store.delete([raw_key(bench.name, "d.csv")])
    assert bench.ingest().added == {}
    assert held_rows.branches(bench.spark, bench.name) == {}, "what waited was of a file that is gone"
    with engine.connect() as connection:
        decided = [(row.kind, row.who, row.changed_rows, row.why) for row in changes(connection, bench.name)]
    assert decided == [
        ("published", "ada", 60, "they are all above"),
        ("rolled_back", "bob", 60, "they were not"),
        ("rolled_back", "bob", 0, "they were, after all"),
        ("dropped", "ada", 90, "a broken export"),
    ]


def test_mislabelled_rows_are_held_back_because_the_champion_says_otherwise(bench: Bench) -> None:
    ordinary = "".join(f"\n    {name}: str | None = None" for name in ("kind", "upto", "is_new", "error"))
    bench.write(f"x: float\n    y: float{ordinary}", SOURCES)
    bench.put(a__csv=points("a", 400), test_of_t__csv=points("t", 200))
    quiet = PipelineConsole(Console(quiet=True))
    run_pipeline(bench.spark, bench.settings, bench.packed, {"epochs": 20}, quiet)

    wrong = points("b", 200).replace(",yes\n", ",?\n").replace(",no\n", ",yes\n").replace(",?\n", ",no\n")
    bench.put(b__csv=wrong)
    with pytest.raises(HeldBack, match=r"champion_disagreement is 0\.\d+ over 200 rows, at most 0\.2 is expected"):
        bench.ingest()
    bench.put(b__csv=points("b", 200))
    assert bench.ingest().added == {"train": 200}
    assert held_rows.branches(bench.spark, bench.name) == {}, "what waited is replaced by what the next ingest adds"
    (agreed,) = [
        row["value"] for row in quality(bench) if row["measure"] == "champion_disagreement" and row["value"] < 0.2
    ]
    assert agreed == 0


def test_withdrawn_events_stay_in_the_archive_and_count_nowhere(
    spark: SparkSession, stack: Settings, tmp_path: Path, engine: Engine
) -> None:
    service = OwnService(stack, tmp_path)
    packed = pack_application(service.name, service.settings)
    names = [f"event-{n}" for n in range(20)]
    archive(spark, service, {name: to_json(digit_event(name, image())) for name in names})
    service.promote(service.publish(model_of(1)))
    recompute(spark, service.settings, packed)
    live = {
        "application": service.name,
        "event_id": "event-3",
        "kafka_partition": 0,
        "kafka_offset": 3,
        "model_version": 1,
        "prediction": "7",
    } | dict.fromkeys(("occurred_at", "predicted_at", "received_at", "stored_at"), datetime.now(UTC))
    with engine.begin() as connection:
        connection.execute(insert(REALTIME_PREDICTIONS).values(**live))

    def events_of_view() -> set[str]:
        return {name for name, _, _ in batch_view(spark, service)}

    choice = Choice(where="event_id IN ('event-3', 'event-7')")
    with pytest.raises(BadInput, match="nothing says"):
        withdraw(spark, engine, service.name, Choice(), who="ada", why="all of them")
    with pytest.raises(BadInput, match="is no condition"):
        withdraw(spark, engine, service.name, Choice(where="nothing ="), who="ada", why="a slip")
    later = Choice(where=choice.where, since=datetime.now(UTC) + timedelta(days=1))
    assert withdraw(spark, engine, service.name, later, who="ada", why="of tomorrow") is None
    home, why = str(service.settings.applications_dir / service.name), "a test rig was live"
    planned = said(data, "withdraw", home, "--where", "event_id IN ('event-3', 'event-7')", "--why", why, "--dry-run")
    assert planned.startswith(f"would be withdrawn: 2 events of {service.name}, such as event-")
    away = patch("batch_layer.withdrawals.hide", side_effect=NotReady("MySQL is away", "wait"))
    with away, pytest.raises(NotReady):
        withdraw(spark, engine, service.name, choice, who="ada", why=why)
    done = withdraw(spark, engine, service.name, choice, who="bob", why="again")
    assert done is not None, "one that was broken off is ended"
    assert (done.rows, done.who, done.why) == (2, "ada", why)
    assert withdraw(spark, engine, service.name, choice, who="ada", why="again") is None, "they count no more"
    mine = select(REALTIME_PREDICTIONS.c.event_id).where(REALTIME_PREDICTIONS.c.application == service.name)
    with engine.connect() as connection:
        assert list(connection.scalars(mine)) == []
    again = ("withdraw", home, "--where", "event_id = 'event-3'", "--why", why)
    with patch("batch_layer.recompute.recompute", side_effect=Conflict("another run is at it", "run it again")):
        failed = CliRunner().invoke(data, again)
    assert isinstance(failed.exception, Conflict)
    assert f"'deeplambda batch recompute {service.name}'" in " ".join(failed.output.split())
    assert "the batch view has 18 predictions without what is withdrawn" in said(data, *again)
    assert said(data, *again) == f"no events of {service.name} that count are meant"
    published = recompute(spark, service.settings, packed)
    assert (published.scored, published.rows, published.offsets) == (0, 18, {0: 20})
    assert events_of_view() == set(names) - {"event-3", "event-7"}
    assert counted_events(spark, service.name).count() == 18
    assert spark.table(f"lake.{service.name}.events").count() == 20

    archive(spark, service, {"event-3": to_json(digit_event("event-3", image()))}, first_offset=20)
    assert recompute(spark, service.settings, packed).rows == 19, "whoever sends it again sends a new one"
    assert done.subject is not None
    told = said(data, "restore", home, done.subject, "--who", "bob", "--why", "it was no test")
    assert told.startswith(f"restored: 2 records of {service.name}.")
    assert recompute(spark, service.settings, packed, whole=True).rows == 20

    archive(spark, service, {"late": to_json(digit_event("late", image()))}, first_offset=21)
    assert withdraw(spark, engine, service.name, Choice(where="event_id = 'late'"), who="ada", why=why) is not None
    with engine.begin() as connection:  # as a stream does that was behind
        late = live | {"event_id": "late", "kafka_offset": 21}
        connection.execute(insert(REALTIME_PREDICTIONS).values(**late))
        known = {name: value for name, value in late.items() if name in LIVE_ANSWERS.columns}
        connection.execute(insert(LIVE_ANSWERS).values(**known, label="7", labelled_at=datetime.now(UTC), correct=True))
    recompute(spark, service.settings, packed)
    labelled = select(LIVE_ANSWERS.c.event_id).where(LIVE_ANSWERS.c.application == service.name)
    with engine.connect() as connection:
        assert [*connection.scalars(mine), *connection.scalars(labelled)] == []


def test_a_days_events_are_measured_in_numbers_that_can_be_counted(
    spark: SparkSession, stack: Settings, tmp_path: Path
) -> None:
    service = OwnService(stack, tmp_path)
    packed = pack_application(service.name, service.settings)
    good = {name: to_json(digit_event(name, image())) for name in ("a", "b", "c", "d", "e", "f")}
    archive(spark, service, good | {"broken": b"{not JSON"})
    archive(spark, service, {"a": good["a"], "b": to_json(digit_event("b", image(b"\x05\x05\x05\x05")))}, 8)
    at, table = datetime.now(UTC), f"lake.{service.name}.labels"
    labels = [("a", "1", 0, 0, at, at), ("a", "2", 0, 1, at, at), ("c", "3", 0, 2, at, at)]
    spark.createDataFrame(labels, spark.table(table).schema).writeTo(table).append()

    measured = measure_day(spark, service.settings, packed, at.date())
    figures = {(found.measure, found.field): (found.value, found.rows) for found in measured.measures}
    assert figures["refused", "not_json"] == (pytest.approx(1 / 9), 9)
    assert figures["duplicates", None] == (pytest.approx(2 / 9), 9)
    assert figures["conflicting_ids", None] == (pytest.approx(1 / 7), 7)
    assert figures["missing_offsets", None] == (pytest.approx(1 / 10), 10)
    assert figures["label_conflicts", None] == (pytest.approx(1 / 2), 2)
    assert figures["unlabelled", None] == (pytest.approx(5 / 7), 7)
    assert figures["delay_s", "event to broker, p99"][1] == 8
    kept = spark.table(f"lake.{service.name}.data_quality").where("subject = 'events'")
    assert kept.count() == len(measured.measures)
    assert figures["unreadable", None] == (0, 2)

    store, (file, *_) = ObjectStore(service.settings), spark.table(f"lake.{service.name}.events.files").collect()
    key = urlsplit(file.file_path).path.removeprefix("/")
    store.put(key, b"cut off")
    (unreadable,) = measure_day(spark, service.settings, packed, at.date()).measures
    assert (unreadable.measure, unreadable.value, unreadable.rows) == ("unreadable", 0.5, 2), "one of two is cut off"
    assert measure_events(spark, service.settings, packed) == [], (
        "a day that has not ended is not taken for a whole one"
    )
    for later, measured in ((1, []), (2, [at.date()])):  # the archive has nothing of the next day: it may be behind
        with patch("batch_layer.event_quality.now", return_value=at + timedelta(days=later)):
            assert [each.day for each in measure_events(spark, service.settings, packed)] == measured


def test_a_lake_of_before_there_were_withdrawals_counts_every_event(
    spark: SparkSession, stack: Settings, tmp_path: Path
) -> None:
    service = OwnService(stack, tmp_path)
    create_tables(spark, pack_application(service.name, service.settings).load())
    archive(spark, service, {"a": b"{}"})
    spark.sql(f"DROP TABLE lake.{service.name}.withdrawals")
    assert counted_events(spark, service.name).count() == 1
