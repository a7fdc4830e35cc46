"""Withdrawals: events or labels that were sent in error stay in the archive, marked, and count nowhere any more.

1. The rows of the archive that a person means are chosen; of an event, all its copies. Whoever calls waits before until
   the archive has what Kafka has (`archived`).
2. One append to `withdrawals` marks them, by their position, with who, when and why. From then on they are out of what
   is counted (`counted_events`): training, recomputation, MySQL's recent tables.
3. MySQL's rows of the events are deleted; an answer whose label it was has none.
4. The batch view loses them with the next recomputation, and MySQL the answers of a stream that was behind and scored
   them after 3.
A crash after 2 is mended by doing it, or any other withdrawal, again: what MySQL has no record of is gone through once
more, and the batch view is recomputed while it shows what is withdrawn. Whoever sends an event again under the same id
sends a new one.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import islice
from typing import Any

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from sqlalchemy import Connection, Engine, delete, tuple_, update

from batch_layer.counted_events import POSITION, counted_events, counted_labels, withdrawn
from batch_layer.lineage import that_learned
from deeplambda.adapters import mysql
from deeplambda.adapters.lake import commits, current_snapshot, read_snapshot
from deeplambda.errors import BadInput
from deeplambda.records.horizon import Horizon
from deeplambda.records.lifecycle import DataChanged
from deeplambda.state import registry
from deeplambda.state.data_changes import changes, record_change
from deeplambda.state.tables import LIVE_ANSWERS, REALTIME_PREDICTIONS, RECENT_PREDICTIONS

_CHANGED_AT_ONCE = 1_000
_CLOCKS_DIFFER = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which records of a topic are meant: those for which all that is given holds.

    topic: `events` or `labels`. since, until: by the broker's time, the second excluded. producer: the `source` of a
    CloudEvent. where: a condition in Spark SQL on the archive's columns, and `json`, the record's text.
    """

    topic: str = "events"
    since: datetime | None = None
    until: datetime | None = None
    producer: str | None = None
    where: str | None = None


def chosen(spark: SparkSession, application: str, choice: Choice) -> DataFrame:
    """The archive's rows that a choice means and that still count. Raises: BadInput for a condition that is none."""
    if not (choice.since or choice.until or choice.producer or choice.where):
        raise BadInput("nothing says which records are meant", "give --from, --to, --producer or --where")
    if choice.topic == "labels":
        if choice.producer:
            raise BadInput("a label names no producer", "choose labels by --from, --to or --where")
        rows = counted_labels(spark, application)
        found = rows
    else:
        rows = counted_events(spark, application)
        found = rows.withColumn("json", F.col("value").cast("string"))
    if choice.since:
        found = found.where(F.col("kafka_timestamp") >= F.lit(choice.since))
    if choice.until:
        found = found.where(F.col("kafka_timestamp") < F.lit(choice.until))
    if choice.producer:
        found = found.where(F.get_json_object("json", "$.source") == choice.producer)
    if choice.where:
        try:
            found = found.where(choice.where)
        except (AnalysisException, ParseException) as exc:
            raise BadInput(
                f"{choice.where!r} is no condition: {exc}", f"its columns are {', '.join(found.columns)}"
            ) from exc
    if choice.topic == "labels":
        return found
    return rows.join(found.select("event_id").distinct(), "event_id", "left_semi").select(rows.columns)


def withdraw(
    spark: SparkSession, engine: Engine, application: str, choice: Choice, *, who: str, why: str
) -> DataChanged | None:
    """Mark what is chosen; None where nothing is, nor was by one that was broken off.

    Raises: BadInput, NotReady, Conflict when another run is at it.
    """
    with mysql.named_lock(engine, _lock(application)):
        return _withdraw(spark, engine, application, choice, who, why)


def _lock(application: str) -> str:
    return f"deeplambda.{application}.withdrawals"


def _withdraw(
    spark: SparkSession, engine: Engine, application: str, choice: Choice, who: str, why: str
) -> DataChanged | None:
    table, name = f"lake.{application}.withdrawals", secrets.token_hex(4)
    done = [_finish(spark, engine, application, each, None) for each in _unrecorded(spark, engine, application)]
    previous = current_snapshot(spark, table)
    marks = (
        chosen(spark, application, choice)
        .select("event_id", "kafka_partition", "kafka_offset")
        .withColumns(
            {
                "withdrawal": F.lit(name),
                "topic": F.lit(choice.topic),
                "withdrawn_at": F.current_timestamp(),
                "withdrawn_by": F.lit(who),
                "why": F.lit(why),
            }
        )
    )
    marks.select(spark.table(table).columns).writeTo(table).append()
    done.append(_finish(spark, engine, application, name, previous))
    return next((change for change in reversed(done) if change is not None), None)


def _unrecorded(spark: SparkSession, engine: Engine, application: str) -> list[str]:
    """Names of withdrawals whose records are marked and no more."""
    with mysql.mysql_errors(), engine.connect() as connection:
        recorded = {each.subject for each in changes(connection, application) if each.kind == "withdrawn"}
    names = spark.table(f"lake.{application}.withdrawals").select("withdrawal").distinct().collect()
    return sorted({row.withdrawal for row in names} - recorded)


def _finish(
    spark: SparkSession, engine: Engine, application: str, name: str, previous: int | None
) -> DataChanged | None:
    """All that follows the marks, which may be done again; None where there are none."""
    table = f"lake.{application}.withdrawals"
    marked = spark.table(table).where(F.col("withdrawal") == name)
    if (first := marked.first()) is None:
        return None
    with mysql.mysql_errors(), engine.connect() as connection:
        cards = registry.cards(connection, application)
    if first.topic == "events":
        hide(engine, application, marked.select("event_id", *POSITION).distinct().toLocalIterator())
    else:
        of_marks = spark.table(f"lake.{application}.labels").join(F.broadcast(marked), list(POSITION), "left_semi")
        _take_back(engine, application, of_marks.select("event_id", "kafka_timestamp").toLocalIterator())
    marks = Marks(spark, application, marked)
    versions = that_learned(cards, lambda card: marks.are_in(card.events_snapshot, card.labels_snapshot))
    change = DataChanged(
        application=application,
        kind="withdrawn",
        table="withdrawals",
        snapshot=current_snapshot(spark, table),
        previous=previous,
        subject=name,
        rows=marked.count(),
        versions=versions,
        who=first.withdrawn_by,
        why=first.why,
    )
    return record_change(engine, change)


def restore(
    spark: SparkSession, engine: Engine, application: str, withdrawal: str, *, who: str, why: str
) -> DataChanged:
    """Undo a withdrawal; the batch view has its events again once the whole archive is recomputed.

    Raises: BadInput, NotReady, Conflict when another run is at it.
    """
    with mysql.named_lock(engine, _lock(application)):
        return _restore(spark, engine, application, withdrawal, who, why)


def _restore(spark: SparkSession, engine: Engine, application: str, withdrawal: str, who: str, why: str) -> DataChanged:
    table = f"lake.{application}.withdrawals"
    previous = current_snapshot(spark, table)
    if not (rows := spark.table(table).where(F.col("withdrawal") == withdrawal).count()):
        raise BadInput(
            f"{application} has no withdrawal {withdrawal!r}", f"see 'deeplambda data history {application}'"
        )
    spark.sql(f"DELETE FROM {table} WHERE withdrawal = '{withdrawal}'")  # a name of ours, for there are rows of it
    change = DataChanged(
        application=application,
        kind="restored",
        table="withdrawals",
        snapshot=current_snapshot(spark, table),
        previous=previous,
        subject=withdrawal,
        rows=rows,
        who=who,
        why=why,
    )
    return record_change(engine, change)


def are_shown(spark: SparkSession, application: str, visible: Horizon) -> bool:
    """Whether the visible batch view has predictions of withdrawn events."""
    gone = withdrawn(spark, application, "events")
    if gone is None or visible.snapshot is None:
        return False
    view = read_snapshot(spark, f"lake.{application}.predictions", visible.snapshot)
    return not view.join(gone, list(POSITION), "left_semi").isEmpty()


def hide(engine: Engine, application: str, marks: Iterator[Row]) -> None:
    """Delete the events' rows from MySQL's views. marks: event ids with their positions. An answer to a copy that was
    sent later stays, but for the recent tables', which the next recomputation brings back. Raises: NotReady."""
    while some := [tuple(mark) for mark in islice(marks, _CHANGED_AT_ONCE)]:
        with mysql.mysql_errors(), engine.begin() as connection:
            _delete_answers(connection, application, some)
            ids = RECENT_PREDICTIONS.c.event_id.in_([event_id for event_id, *_ in some])
            connection.execute(delete(RECENT_PREDICTIONS).where(RECENT_PREDICTIONS.c.application == application, ids))


def hide_scored_late(spark: SparkSession, engine: Engine, application: str, absorbed: Horizon) -> None:
    """Delete the answers to events that were withdrawn before the stream scored them, but for events that the horizon
    had absorbed. Raises: NotReady."""
    if withdrawn(spark, application, "events") is None:
        return
    marks = spark.table(f"lake.{application}.withdrawals").where(F.col("topic") == "events")
    rows = marks.where(absorbed.past_spark()).select("event_id", *POSITION).distinct().toLocalIterator()
    engine = engine.execution_options(isolation_level="READ COMMITTED")  # the views write beside it
    while some := [tuple(mark) for mark in islice(rows, _CHANGED_AT_ONCE)]:
        with mysql.mysql_errors(), engine.begin() as connection:
            _delete_answers(connection, application, some)


def _delete_answers(connection: Connection, application: str, marks: list[tuple[Any, ...]]) -> None:
    for table in (REALTIME_PREDICTIONS, LIVE_ANSWERS):
        by_key = table.c.application == application, table.c.event_id.in_([event_id for event_id, *_ in marks])
        theirs = tuple_(*(table.c[name] for name in ("event_id", *POSITION))).in_(marks)
        connection.execute(delete(table).where(*by_key, theirs))


def _take_back(engine: Engine, application: str, labels: Iterator[Row]) -> None:
    """Have answers wait for another label where theirs is one of these."""
    table = LIVE_ANSWERS.c
    none = dict.fromkeys(("label", "labelled_at", "correct", "error"))
    while some := [(row.event_id, row.kafka_timestamp) for row in islice(labels, _CHANGED_AT_ONCE)]:
        theirs = tuple_(table.event_id, table.labelled_at).in_(some)
        with mysql.mysql_errors(), engine.begin() as connection:
            connection.execute(update(LIVE_ANSWERS).where(table.application == application, theirs).values(none))


class Marks:
    """Marked records of an application; which snapshots of its archive have some. marks: rows of `withdrawals`."""

    def __init__(self, spark: SparkSession, application: str, marks: DataFrame) -> None:
        self._spark, self._application, self._marks = spark, application, marks
        self._known: dict[tuple[int | None, int | None], bool] = {}

    def are_in(self, events_snapshot: int | None, labels_snapshot: int | None) -> bool:
        """Whether some are labels of a snapshot, or labelled events of one. None, and what the lake no longer has, has
        none; nor has what was committed before the first of them was archived, into which nobody looks."""
        asked = events_snapshot, labels_snapshot
        if asked not in self._known:
            self._known[asked] = self._look_into(*asked)
        return self._known[asked]

    def _look_into(self, events_snapshot: int | None, labels_snapshot: int | None) -> bool:
        found, committed = [], list[datetime]()
        for topic, snapshot in (("labels", labels_snapshot), ("events", events_snapshot)):
            table = f"lake.{self._application}.{topic}"
            if snapshot is None or (at := self._commits[topic].get(snapshot)) is None:
                return False
            found.append(read_snapshot(self._spark, table, snapshot))
            committed.append(at)
        if self._first_archived is None or max(committed) + _CLOCKS_DIFFER < self._first_archived:
            return False
        labels, events = found
        if not labels.join(self._of("labels"), list(POSITION), "left_semi").isEmpty():
            return True
        marked = events.join(self._of("events"), list(POSITION), "left_semi")
        return not marked.join(labels.select("event_id"), "event_id", "left_semi").isEmpty()

    def _of(self, topic: str) -> DataFrame:
        return F.broadcast(self._marks.where(F.col("topic") == topic).select(*POSITION))

    @cached_property
    def _commits(self) -> dict[str, dict[int, datetime]]:
        tables = {topic: f"lake.{self._application}.{topic}" for topic in ("labels", "events")}
        for table in tables.values():
            self._spark.catalog.refreshTable(table)  # the archive writes it
        return {topic: commits(self._spark, table) for topic, table in tables.items()}

    @cached_property
    def _first_archived(self) -> datetime | None:
        """When the first of them was; None where there are none."""
        times = []
        for topic in ("labels", "events"):
            table = f"lake.{self._application}.{topic}"
            self._spark.catalog.refreshTable(table)  # the archive writes it
            of_topic = self._spark.table(table).join(self._of(topic), list(POSITION), "left_semi")
            times += [row.at.astimezone() for row in of_topic.agg(F.min("archived_at").alias("at")).collect() if row.at]
        return min(times, default=None)
