"""Upkeep frees what nobody needs, and nothing that a card, the horizon or a tag names."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic_core import to_json
from pyspark.sql import SparkSession
from sqlalchemy import func, insert, select

from batch_layer import upkeep
from batch_layer.recompute import recompute
from batch_layer.upkeep import Table, kept_by_age, maintain
from deeplambda.adapters import mysql
from deeplambda.adapters.lake import create_tables, read_snapshot
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.loading import pack_application
from deeplambda.records.horizon import Horizon
from deeplambda.state import registry
from deeplambda.state.horizon_store import forget_shown, read_batch_view, record_shown
from deeplambda.state.tables import EXPERIMENT_ANSWERS, EXPERIMENTS, OUTBOX, QUERIES
from examples.digits.application import Digits
from tests.integration.own_model_service import OwnService, model_of
from tests.integration.test_recompute import archive, image
from tests.traffic import digit_event

COMMITS, PUBLISHED = 8, 3
"""Commits of events, and how many of them the batch view has at first."""


def test_many_commits_leave_little_and_what_is_pinned_can_still_be_read(
    stack: Settings, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "RETAINED", 3)
    monkeypatch.setattr(upkeep, "SMALL_FILES", 6)
    service = OwnService(stack, tmp_path)
    packed, table = pack_application(service.name, service.settings), f"lake.{service.name}.events"

    def commit(number: int) -> None:
        archive(spark, service, {f"event-{number}": to_json(digit_event(f"event-{number}", image()))}, number)

    for number in range(PUBLISHED):
        commit(number)
    service.promote(service.publish(model_of(1)))
    recompute(spark, service.settings, packed)
    for number in range(PUBLISHED, COMMITS):
        commit(number)
    platform = mysql.engine(service.settings, "platform")
    with platform.connect() as connection:
        visible = read_batch_view(connection, service.name)
        (card,) = registry.cards(connection, service.name)
    oldest = Table(spark, service.name, "events").snapshots()[0][0]
    spark.sql(f"ALTER TABLE {table} CREATE TAG mine AS OF VERSION {oldest}")
    store = ObjectStore(service.settings)
    names = (f"runs/{card.run}/a", "prepared/left/b", "tuning/study/d", "models/1/c")
    run, left, tuning, used = (f"{service.name}/{name}" for name in names)
    for key in (run, left, tuning, used):
        store.put(key, b"0" * 10)

    def files() -> tuple[int, int]:
        snapshots = Table(spark, service.name, "events").snapshots()
        return len(snapshots), spark.sql(f"SELECT * FROM {table}.files").count()

    assert files() == (COMMITS, COMMITS)
    planned = maintain(spark, service.settings, service.name, dry_run=True, kept_snapshots=timedelta())
    assert planned.objects["small files"] == COMMITS
    assert planned.bytes["small files"] > 0
    assert files() == (COMMITS, COMMITS), "a dry run leaves everything"

    maintain(spark, service.settings, service.name, kept_snapshots=timedelta())
    snapshots, data_files = files()
    assert snapshots <= 3 + 3
    assert data_files < COMMITS / 2
    assert spark.table(table).count() == COMMITS
    assert visible.events_snapshot is not None
    assert read_snapshot(spark, table, visible.events_snapshot).count() == PUBLISHED
    assert spark.sql(f"SELECT * FROM {table} VERSION AS OF 'mine'").count() == 1
    assert read_snapshot(spark, f"lake.{service.name}.predictions", visible.horizon.snapshot or 0).count() == PUBLISHED
    assert {found.key for found in store.list(f"{service.name}/")} >= {run, left, tuning, used}, "they are of today"

    monkeypatch.setattr(upkeep, "now", lambda: datetime.now(UTC) + timedelta(days=8))
    freed = maintain(spark, service.settings, service.name, orphans=False)
    assert [freed.objects[what] for what in ("checkpoints", "prepared data", "tunings")] == [1, 1, 1]
    assert freed.bytes["checkpoints"] == 10
    left_over = {found.key for found in store.list(f"{service.name}/")}
    assert used in left_over
    assert not {run, left, tuning} & left_over
    assert recompute(spark, service.settings, packed).scored == COMMITS - PUBLISHED, "it goes on from the horizon"


def test_a_file_that_is_large_enough_is_not_written_once_more_for_each_version_that_pins_it(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Labelled(Digits):
        name = f"own_{uuid4().hex[:8]}"

    create_tables(spark, Labelled())
    table = f"lake.{Labelled.name}.labels"

    def commit(first: int, rows: int) -> None:
        spark.sql(
            f"INSERT INTO {table} SELECT uuid(), '7', 0, id, current_timestamp(), current_timestamp() "
            f"FROM range({first}, {first + rows}, 1, 1)"
        )

    def files() -> set[str]:
        return {row.file_path for row in spark.sql(f"SELECT file_path FROM {table}.files").collect()}

    monkeypatch.setattr(upkeep, "SMALL_BYTES", 100_000)
    commit(0, 20_000)
    (large,) = files()
    for number in range(6):
        commit(20_000 + number, 1)
    assert Table(spark, Labelled.name, "labels").small_files()[0] == 6
    assert Table(spark, Labelled.name, "labels").compact()[0] == 6
    assert large in files()
    assert len(files()) == 2


def test_a_snapshot_that_is_named_while_upkeep_tags_the_others_stays(
    stack: Settings, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "RETAINED", 1)
    service, none = OwnService(stack, tmp_path), timedelta()
    for number in range(3):
        archive(spark, service, {f"event-{number}": b"0"}, number)
    table = Table(spark, service.name, "events")
    (first, _), *_ = table.snapshots()
    named = iter([set[int](), {first}])
    monkeypatch.setattr(upkeep, "_pinned_by_state", lambda *_: next(named))
    platform = mysql.engine(service.settings, "platform")
    upkeep._maintain_table(table, platform, service.name, none, none, upkeep.Freed(), dry_run=False)
    assert first in {snapshot for snapshot, _ in table.snapshots()}
    assert len(table.snapshots()) == 2


def test_rows_of_mysql_go_once_they_are_old_and_a_dry_run_counts_them(
    stack: Settings, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "_CHUNK_ROWS", 2)
    name, platform, at, day = f"own_{uuid4().hex[:8]}", mysql.engine(stack, "platform"), now(), timedelta(days=1)
    outbox = [at - day * days for days in (8, 8, 8, 8, 8, 6)]
    record = {"topic": name, "record_key": "", "value": "{}", "written_at": at - 9 * day}
    asked = {"statement": name, "store": "hive", "status": "done"}
    experiment = {"kind": "shadow", "version": 1, "champion": 2, "share": 1, "until_decided": False, "state": "running"}
    counts = dict.fromkeys(("answered", "failed", "shed", "labelled"), 3)
    with platform.begin() as connection:
        connection.execute(insert(OUTBOX), [record | {"published_at": published} for published in outbox])
        for days in (2, 0.5):
            connection.execute(insert(QUERIES).values(id=str(uuid4()), submitted_at=at - day * days, **asked))
        for number, ended in ((1, at - 8 * day), (2, None)):
            key = {"application": name, "number": number, "started_at": at - 9 * day, "ended_at": ended}
            connection.execute(insert(EXPERIMENTS).values(**key, **experiment, **counts))
            answers = [{"application": name, "experiment": number, "event_id": str(n), "at": at} for n in range(3)]
            connection.execute(insert(EXPERIMENT_ANSWERS), answers)

    def left() -> list[int | None]:
        own = OUTBOX.c.topic == name, QUERIES.c.statement == name, EXPERIMENT_ANSWERS.c.application == name
        with platform.connect() as connection:
            return [connection.scalar(select(func.count()).where(rows)) for rows in own]

    planned = maintain(spark, stack, name, dry_run=True)
    assert left() == [6, 2, 6]
    assert maintain(spark, stack, name).objects == planned.objects
    assert left() == [1, 1, 3]
    assert planned.objects["answers of experiments"] == 3


def test_what_a_gateway_still_shows_is_pinned(stack: Settings) -> None:
    name, platform = f"own_{uuid4().hex[:8]}", mysql.engine(stack, "platform")
    with platform.begin() as connection:
        record_shown(connection, name, Horizon(snapshot=11))
        assert upkeep._pinned_by_state(connection, name, "predictions") == {11}
        assert upkeep._pinned_by_state(connection, name, "events") == set()
        forget_shown(connection, name, timedelta())


def test_of_each_day_the_last_snapshot_stays_and_the_one_that_readers_may_still_read() -> None:
    noon = datetime(2026, 1, 10, 12, tzinfo=UTC)
    snapshots = [(number, noon - timedelta(hours=hours)) for number, hours in enumerate((300, 30, 20, 6, 3, 1, 0))]
    kept = kept_by_age(snapshots, cutoff=noon - timedelta(hours=2), since=noon - timedelta(days=7))
    assert kept == {2, 4, 6}
