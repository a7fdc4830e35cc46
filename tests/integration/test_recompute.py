"""Recomputation: it goes through bad events, adds what is new, and is never overtaken by what changes beside it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
from pydantic_core import to_json
from pyspark import TaskContext
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from batch_layer import recompute as recomputation
from batch_layer import refusals, withdrawals
from batch_layer.recompute import recompute
from deeplambda.adapters import mysql
from deeplambda.adapters.lake import TABLES, create_tables, current_snapshot, read_snapshot
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import Conflict, TooManyRefused
from deeplambda.loading import pack_application
from deeplambda.records.horizon import Horizon
from deeplambda.records.predictions import SEEN_SCHEMA
from deeplambda.state.horizon_store import BatchView, read_horizon
from tests.integration.own_model_service import OwnService, model_of
from tests.integration.test_views import prediction, store
from tests.traffic import digit_event

ROOT = Path(__file__).parents[2]
RAISES, HANGS, OVERFLOWS, GOOD = (bytes([number]) * 4 for number in (1, 2, 3, 9))
"""How an image begins that makes the transform raise, hang, or give the model what it has no finite outputs for."""

_CLEAN = "return _NORMALISED[pixels].reshape(-1, 1, 28, 28)"
_WITH_FAULTS = f"""\
marks = [image[:4] for image in batch["image"].to_pylist()]
        if {RAISES!r} in marks:
            raise KeyError("a word that nobody knows")
        while {HANGS!r} in marks:
            pass
        features = _NORMALISED[pixels].reshape(-1, 1, 28, 28)
        features[[mark == {OVERFLOWS!r} for mark in marks]] = 3e38
        return features"""


def write_code(service: OwnService, body: str) -> None:
    """The digits application with another transform and 1 s for it."""
    source = (ROOT / "examples/digits/application.py").read_text()
    source = source.replace(
        '    name = "digits"', f'    name = "{service.name}"\n    slices = ("image",)\n    transform_limit_s = 1.0'
    )
    place = service.settings.applications_dir / service.name / "application.py"
    place.write_text(source.replace(_CLEAN, body))


def image(mark: bytes = GOOD) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    return np.frombuffer(mark + bytes(780), np.uint8)


def archive(spark: SparkSession, service: OwnService, values: dict[str, bytes], first_offset: int = 0) -> None:
    """Put events where the archive stream would: offsets, and times in ms, are in the order of `values`."""
    table, at = f"lake.{service.name}.events", datetime.now(UTC)
    if not spark.catalog.tableExists(table):
        create_tables(spark, pack_application(service.name, service.settings).load())
    there = spark.table(table)
    rows = [
        {"event_id": name, "kafka_partition": 0, "kafka_offset": n, "value": value, "archived_at": at}
        | {"kafka_timestamp": at + timedelta(milliseconds=n)}
        for n, (name, value) in enumerate(values.items(), first_offset)
    ]
    columns = [[row[column] for column in there.columns] for row in rows]
    spark.createDataFrame(columns, there.schema).coalesce(1).writeTo(table).append()


def test_recompute_goes_through_keeps_what_it_refuses_once_and_drops_no_multitude(
    stack: Settings, spark: SparkSession, tmp_path: Path
) -> None:
    service = OwnService(stack, tmp_path)
    write_code(service, _WITH_FAULTS)
    marks = {"raises": RAISES, "hangs": HANGS, "overflows": OVERFLOWS} | {f"good-{n}": GOOD for n in range(20)}
    values = {name: to_json(digit_event(name, image(mark))) for name, mark in marks.items()}
    archive(spark, service, values | {"broken": b"{not JSON"})
    service.promote(service.publish(model_of(1)))
    packed = pack_application(service.name, service.settings)

    published = recompute(spark, service.settings, packed)
    assert (published.rows, published.refused) == (20, 4)

    def quarantine() -> dict[str, tuple[str, str]]:
        rows = spark.table(f"lake.{service.name}.quarantine").collect()
        assert len({row.source for row in rows}) == len(rows)
        return {row.source: (row.reason, row.detail) for row in rows}

    slices = {row.slices for row in spark.table(f"lake.{service.name}.predictions").collect()}
    assert [slice[:12] for slice in slices] == ['{"image":"b\'']
    kept = quarantine()
    position = f"{service.name}.events/0/"
    assert {source: reason for source, (reason, _) in kept.items()} == {
        f"{position}0": "transform_failed",
        f"{position}1": "transform_failed",
        f"{position}2": "model_failed",
        f"{position}23": "not_json",
    }
    assert "a word that nobody knows" in kept[f"{position}0"][1]
    assert "took longer than 1 s" in kept[f"{position}1"][1]
    assert recompute(spark, service.settings, packed).scored == 0, "the archive has gained nothing"
    assert recompute(spark, service.settings, packed, whole=True).refused == 4
    assert quarantine() == kept, "an event is kept once"

    horizon = horizon_of(service)
    write_code(service, _WITH_FAULTS.replace(repr(RAISES), repr(GOOD)))
    service.promote(service.publish(model_of(2)))
    with pytest.raises(TooManyRefused, match=r"refuses 20 of 20 events .*--accept-refused"):
        recompute(spark, service.settings, packed)
    assert horizon_of(service) == horizon
    assert len(quarantine()) == 24
    accepted = recompute(spark, service.settings, packed, accepted_share=1)
    assert (accepted.rows, accepted.version) == (1, 2)
    assert horizon_of(service) != horizon


def horizon_of(service: OwnService) -> object:
    with mysql.engine(service.settings, "platform").connect() as connection:
        return read_horizon(connection, service.name)


Row = tuple[str, int, str]
"""Of the batch view: event id, offset, prediction."""


def batch_view(spark: SparkSession, service: OwnService) -> dict[Row, datetime]:
    """The visible batch view, and when each row was made."""
    with mysql.engine(service.settings, "platform").connect() as connection:
        snapshot = read_horizon(connection, service.name).snapshot
    assert snapshot is not None
    rows = read_snapshot(spark, f"lake.{service.name}.predictions", snapshot).collect()
    assert len({row.event_id for row in rows}) == len(rows)
    return {(row.event_id, row.kafka_offset, row.prediction): row.predicted_at for row in rows}


@pytest.fixture(scope="module")
def served(stack: Settings, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> OwnService:
    """An application with a champion, twenty archived events and a batch view of them; each test may add to them."""
    service = OwnService(stack, tmp_path_factory.mktemp("served"))
    archive(spark, service, {f"event-{n}": to_json(digit_event(f"event-{n}", image())) for n in range(20)})
    service.promote(service.publish(model_of(1)))
    recompute(spark, service.settings, pack_application(service.name, service.settings))
    return service


def test_only_what_the_archive_gained_is_scored_and_the_view_is_that_of_scoring_all(
    spark: SparkSession, served: OwnService
) -> None:
    packed, before = pack_application(served.name, served.settings), batch_view(spark, served)
    again, new = {"event-3": to_json(digit_event("event-3", image()))}, [f"new-{n}" for n in range(5)]
    archive(spark, served, again | {name: to_json(digit_event(name, image())) for name in new}, first_offset=20)
    # What a run that died before it moved the horizon has left is not built on.
    spark.sql(f"DELETE FROM lake.{served.name}.predictions WHERE event_id = 'event-7'")

    published = recompute(spark, served.settings, packed)
    assert (published.scored, published.rows, published.offsets) == (6, 25, {0: 26})
    grown = batch_view(spark, served)
    assert {row: at for row, at in grown.items() if row in before} == before, "rows of before stay as they are"
    assert {name for name, _, _ in grown} == {*(f"event-{n}" for n in range(20)), *new}

    whole = recompute(spark, served.settings, packed, whole=True)
    assert (whole.scored, whole.rows) == (26, 25)
    assert batch_view(spark, served).keys() == grown.keys()


@pytest.fixture
def empty(spark: SparkSession) -> Iterator[str]:
    """A namespace of the lake, with an archive and a quarantine."""
    name = f"own_{uuid4().hex[:8]}"
    spark.sql(f"CREATE NAMESPACE lake.{name}")
    for table in ("events", "quarantine"):
        columns, clauses = TABLES[table]
        spark.sql(f"CREATE TABLE lake.{name}.{table} ({columns}) USING iceberg {clauses}")
    yield name
    for table in ("events", "quarantine"):
        spark.sql(f"DROP TABLE lake.{name}.{table}")
    spark.sql(f"DROP NAMESPACE lake.{name}")


def test_files_of_absorbed_events_are_not_read_again(stack: Settings, spark: SparkSession, empty: str) -> None:
    archived, store = f"lake.{empty}.events", ObjectStore(stack)

    def append(minute: int, *positions: tuple[int, int]) -> int:
        """One file of events of several partitions; the snapshot."""
        rows = ", ".join(f"('{p}-{o}', {p}, {o}, TIMESTAMP '2026-01-01 00:{minute}:00')" for p, o in positions)
        spark.sql(f"INSERT INTO {archived} SELECT *, X'00', current_timestamp() FROM VALUES {rows}")
        return current_snapshot(spark, archived) or 0

    absorbed = append(10, (0, 0), (0, 1_000), (1, 7))
    old = [row.file_path for row in spark.sql(f"SELECT file_path FROM {archived}.files").collect()]
    visible = BatchView(horizon=Horizon(snapshot=1, offsets={0: 1_001, 1: 8}), events_snapshot=absorbed, version=1)
    pinned = append(20, (0, 1_001), (1, 8), (2, 0))
    store.delete(path.partition(f"{stack.s3_bucket}/")[2] for path in old)  # who reads them fails

    def found(snapshot: int) -> set[str]:
        return {row.event_id for row in recomputation.gained(spark, archived, snapshot, visible).collect()}

    assert found(absorbed) == set()
    assert found(pinned) == {"0-1001", "1-8", "2-0"}


def test_what_the_archive_has_gained_is_found_without_the_snapshot_of_before(spark: SparkSession, empty: str) -> None:
    archived = f"lake.{empty}.events"
    for offset in (0, 1):
        spark.sql(f"INSERT INTO {archived} SELECT '{offset}', 0, {offset}, current_timestamp(), X'00', now()")
    visible = BatchView(horizon=Horizon(snapshot=1, offsets={0: 1}), events_snapshot=404, version=1)
    pinned = current_snapshot(spark, archived) or 0
    assert [row.event_id for row in recomputation.gained(spark, archived, pinned, visible).collect()] == ["1"]


def test_the_first_copy_of_an_event_is_the_one_that_the_broker_took_first(spark: SparkSession) -> None:
    """Not the one with the lowest offset, which is in a partition that the topic has got since."""
    at = datetime(2026, 1, 2, tzinfo=UTC)
    known = dict.fromkeys(SEEN_SCHEMA.names) | {"event_id": "again", "occurred_at": at, "predicted_at": at}
    copies = [(0, 1_000, 0), (0, 1_001, 1), (5, 3, 2)]
    rows = [
        known | {"kafka_partition": partition, "kafka_offset": offset, "kafka_timestamp": at + timedelta(seconds=later)}
        for partition, offset, later in copies
    ]
    scored = spark.createDataFrame(pa.Table.from_pylist(rows, schema=SEEN_SCHEMA))
    (first,) = recomputation._first_copies(scored).collect()
    assert (first.kafka_partition, first.kafka_offset) == (0, 1_000)


def test_every_task_looks_for_what_it_has_to_refuse(spark: SparkSession, empty: str) -> None:
    def seen(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        task = TaskContext.get()
        assert task is not None
        for batch in batches:
            for n in batch["id"].to_pylist():
                yield pa.RecordBatch.from_pydict({"kafka_offset": [n], "detail": [str(task.partitionId())]})

    refused = spark.range(0, 4, 1, 4).mapInArrow(seen, "kafka_offset BIGINT, detail STRING")
    others = {"kafka_partition": F.lit(0), "reason": F.lit("not_json"), "record": F.lit(b"")}
    refusals.keep(spark, empty, refused.withColumns(others), 4)
    kept = f"lake.{empty}.quarantine"
    assert {row.detail for row in spark.table(kept).collect()} == {"0", "1", "2", "3"}
    assert spark.sql(f"SELECT * FROM {kept}.files").count() == 1


def test_a_change_of_champion_while_it_recomputes_wins(
    spark: SparkSession, served: OwnService, monkeypatch: pytest.MonkeyPatch
) -> None:
    horizon, second = horizon_of(served), served.publish(model_of(2))
    scoring = recomputation._scored

    def promoted_meanwhile(*arguments: Any) -> Any:
        served.promote(second)
        return scoring(*arguments)

    monkeypatch.setattr(recomputation, "_scored", promoted_meanwhile)
    packed = pack_application(served.name, served.settings)
    with pytest.raises(Conflict, match="has become the champion in place of version 1"):
        recompute(spark, served.settings, packed)
    assert horizon_of(served) == horizon
    served.promote(1)


def test_predictions_of_events_that_the_archive_lacks_are_weighed(
    stack: Settings, spark: SparkSession, tmp_path: Path
) -> None:
    service = OwnService(stack, tmp_path)
    name, engine = service.name, mysql.engine(service.settings, "platform")
    events = {f"event-{n}": to_json(digit_event(f"event-{n}", image())) for n in range(40)}
    archive(spark, service, dict(list(events.items())[:20]))
    service.promote(service.publish(model_of(1)))
    packed = pack_application(name, service.settings)

    def scored(event: str, offset: int) -> None:
        row = prediction(event, offset, application=name)
        store(mysql.engine(service.settings, "views"), [row])

    for n in range(7):
        scored(f"event-{n}", n)
    assert recompute(spark, service.settings, packed).missing == 0

    for n in range(20, 27):
        scored(f"event-{n}", n)
    scored("event-7", 27)  # sent again; the batch view has it
    archive(spark, service, {"event-26": events["event-26"]}, first_offset=26)
    archive(spark, service, {"event-28": events["event-28"]}, first_offset=28)
    horizon = horizon_of(service)
    with pytest.raises(TooManyRefused, match=f"lake.{name}.events lacks 6 of 8 events that have a prediction"):
        recompute(spark, service.settings, packed)
    assert horizon_of(service) == horizon
    accepted = recompute(spark, service.settings, packed, accepted_share=1)
    assert (accepted.missing, accepted.rows, accepted.scored) == (6, 22, 2)

    withdrawals.withdraw(
        spark, engine, name, withdrawals.Choice(where="event_id = 'event-9'"), who="test", why="sent in error"
    )
    spark.sql(f"DELETE FROM lake.{name}.events WHERE kafka_offset IN (3, 4)")
    with pytest.raises(TooManyRefused, match=f"lake.{name}.events lacks 2 of "):
        recompute(spark, service.settings, packed, whole=True)
    whole = recompute(spark, service.settings, packed, whole=True, accepted_share=1)
    assert (whole.missing, whole.rows) == (2, 19)


def test_the_horizon_never_goes_back(spark: SparkSession, served: OwnService) -> None:
    horizon = horizon_of(served)
    spark.sql(f"DELETE FROM lake.{served.name}.events WHERE kafka_offset > 9")
    with pytest.raises(Conflict, match=r"would go back in partition 0, to 10 from 2\d"):
        recompute(spark, served.settings, pack_application(served.name, served.settings), whole=True)
    assert horizon_of(served) == horizon
