"""The history of `examples`: what each snapshot added, what differs between two, and the way back to an earlier one.

An ingest gives all its rows one `ingested_at`, and commits them at once. So the times that a snapshot holds say which
ingests it has, and a card's snapshot, which upkeep keeps, says for ever what its version learned from.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from typing import NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sqlalchemy import Engine

from batch_layer import held_rows
from batch_layer.lineage import that_learned
from batch_layer.newest import content_hash, newest_examples
from deeplambda.adapters import mysql
from deeplambda.adapters.lake import current_snapshot, has_snapshot, read_snapshot
from deeplambda.errors import BadInput, Conflict
from deeplambda.records.lifecycle import DataChanged
from deeplambda.state import registry
from deeplambda.state.card import Card
from deeplambda.state.data_changes import record_change


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A state of `examples`. rows: that it has, with corrections and what they correct; added: by it. current: whether
    readers see it; branch: where it waits. versions: models that were trained on it."""

    id: int
    at: datetime
    added: int
    rows: int
    current: bool
    branch: str | None = None
    versions: list[int] = field(default_factory=list)


class _Waiting(NamedTuple):
    """Held rows. snapshot: theirs; begun_at: the table's when they were written; now_at: the table's now."""

    snapshot: int
    begun_at: int | None
    now_at: int | None
    rows: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Rows of one split and label that only the second snapshot has, only the first, or both with other content."""

    kind: str
    split: str
    label: str | None
    rows: int
    such_as: list[str]


def history(spark: SparkSession, application: str, cards: Iterable[Card]) -> list[Snapshot]:
    """The snapshots that the lake still has, the oldest first. Raises: BadInput when nothing was ever ingested."""
    table = _examples(spark, application)
    now_at, waiting = current_snapshot(spark, table), held_rows.branches(spark, application)
    trained: dict[int, list[int]] = {}
    for card in cards:
        trained.setdefault(card.snapshot, []).append(card.version)
    rows = spark.sql(
        f"SELECT snapshot_id, committed_at, summary FROM {table}.snapshots ORDER BY committed_at"
    ).collect()
    return [
        Snapshot(
            id=row.snapshot_id,
            at=row.committed_at.astimezone(),
            added=int(row.summary.get("added-records", 0)),
            rows=int(row.summary["total-records"]),
            current=row.snapshot_id == now_at,
            branch=next((name for name, of in waiting.items() if of == row.snapshot_id), None),
            versions=trained.get(row.snapshot_id, []),
        )
        for row in rows
    ]


def difference(spark: SparkSession, application: str, one: int, other: int) -> list[Difference]:
    """What of the rows that count changes between two snapshots, by kind, split and label. Raises: BadInput."""

    def of(snapshot: int) -> DataFrame:
        check(spark, application, snapshot)
        rows = newest_examples(spark, application, snapshot)
        names = set(rows.columns) - {"source", "source_sha256", "code_version", "ingested_at", "corrects"}
        content = content_hash(column for column in rows.schema if column.name in names)
        return rows.select("event_id", F.struct("split", "label").alias("of"), content.alias("content"))

    ours, theirs = of(one).alias("one"), of(other).alias("other")
    kind = (
        F.when(F.col("one.content").isNull(), "added")
        .when(F.col("other.content").isNull(), "removed")
        .when(F.col("one.content") != F.col("other.content"), "changed")
    )
    shown = F.coalesce("other.of", "one.of")
    found = (
        ours.join(theirs, "event_id", "full")
        .select("event_id", kind.alias("kind"), shown.split.alias("split"), shown.label.alias("label"))
        .where("kind IS NOT NULL")
        .groupBy("kind", "split", "label")
        .agg(F.count("*").alias("rows"), F.min("event_id").alias("first"), F.max("event_id").alias("last"))
        .orderBy("kind", "split", "label")
    )
    return [
        Difference(
            kind=row["kind"],
            split=row["split"],
            label=row["label"],
            rows=row["rows"],
            such_as=sorted({row["first"], row["last"]}),
        )
        for row in found.toLocalIterator()
    ]


def versions_that_saw(spark: SparkSession, application: str, times: set[datetime], cards: Iterable[Card]) -> list[int]:
    """The versions whose snapshot has rows that were ingested at one of these times, or whose weights began from such
    a version's."""
    saw = cache(partial(has_rows_of, spark, application, times))
    return that_learned(cards, lambda card: saw(card.snapshot))


def has_rows_of(spark: SparkSession, application: str, times: set[datetime], snapshot: int) -> bool:
    """Whether a snapshot, if the lake still has it, has rows that were ingested at one of these times."""
    table = f"lake.{application}.examples"
    if not times or not has_snapshot(spark, table, snapshot):
        return False
    # Of an ingest's files Iceberg knows that they are of one moment, and opens no other.
    return not read_snapshot(spark, table, snapshot).where(F.col("ingested_at").isin(sorted(times))).isEmpty()


def impact(spark: SparkSession, application: str, snapshot: int, cards: Iterable[Card]) -> list[int]:
    """The versions that learned from what this snapshot added. Raises: BadInput when there is no such snapshot."""
    check(spark, application, snapshot)
    return versions_that_saw(spark, application, {max(_times(spark, application, snapshot))}, cards)


def roll_back(spark: SparkSession, engine: Engine, application: str, to: int, *, who: str, why: str) -> DataChanged:
    """Make an earlier snapshot, or a later one again, the one that readers see.

    1. What only the snapshot of before has is counted, and the models that learned from it are found.
    2. A tag keeps the snapshot of before, so that an ingest knows the rows again and passes them over.
    3. Iceberg sets the table's snapshot: one change of metadata, no row is written or lost.
    4. Who, when, why.
    A crash between 3 and 4 leaves a table that is rolled back and a change that only Iceberg's history tells.
    Raises: BadInput when there is no such snapshot; Conflict while an ingest is at it.
    """
    table = f"lake.{application}.examples"
    with mysql.named_lock(engine, f"deeplambda.{application}.ingest"):
        check(spark, application, to)
        previous = current_snapshot(spark, table)
        if previous is None or previous == to:
            raise BadInput(f"{table} is at snapshot {to} already", f"see 'deeplambda data history {application}'")
        gone_at = _times(spark, application, previous) - _times(spark, application, to)
        gone = read_snapshot(spark, table, previous).where(F.col("ingested_at").isin(sorted(gone_at)))
        with mysql.mysql_errors(), engine.connect() as connection:
            versions = versions_that_saw(spark, application, gone_at, registry.cards(connection, application))
        change = DataChanged(
            application=application,
            kind="rolled_back",
            table="examples",
            snapshot=to,
            previous=previous,
            rows=gone.count(),
            versions=versions,
            who=who,
            why=why,
        )
        held_rows.take_back(spark, application, previous)
        spark.sql(f"CALL lake.system.set_current_snapshot(table => '{application}.examples', snapshot_id => {to})")
        return record_change(engine, change)


def publish_held(
    spark: SparkSession, engine: Engine, application: str, branch: str, *, who: str, why: str
) -> DataChanged:
    """Have rows count that an expectation holds back: a person's word against it.

    Raises: BadInput when none wait there; Conflict when the table has other rows than when the branch was begun.
    """
    table = f"lake.{application}.examples"
    with mysql.named_lock(engine, f"deeplambda.{application}.ingest"):
        waiting = _waiting(spark, application, branch)
        if waiting.now_at not in (None, waiting.begun_at):
            raise Conflict(
                f"{table} has changed since {branch} was written",
                f"run 'deeplambda batch ingest {application}', which writes the new rows beside what is there now",
            )
        held_rows.publish(spark, application, branch, waiting.snapshot)
        change = DataChanged(
            application=application,
            kind="published",
            table="examples",
            snapshot=waiting.snapshot,
            previous=waiting.now_at,
            subject=branch,
            rows=waiting.rows,
            who=who,
            why=why,
        )
        return record_change(engine, change)


def drop_held(spark: SparkSession, engine: Engine, application: str, branch: str, *, who: str, why: str) -> DataChanged:
    """Give rows up that an expectation holds back; an ingest passes them over.

    Raises: BadInput when none wait there; Conflict while an ingest is at it.
    """
    with mysql.named_lock(engine, f"deeplambda.{application}.ingest"):
        waiting = _waiting(spark, application, branch)
        held_rows.take_back(spark, application, waiting.snapshot)
        held_rows.drop(spark, application, branch)
        change = DataChanged(
            application=application,
            kind="dropped",
            table="examples",
            snapshot=waiting.now_at,
            previous=waiting.now_at,
            subject=branch,
            rows=waiting.rows,
            who=who,
            why=why,
        )
        return record_change(engine, change)


def check(spark: SparkSession, application: str, snapshot: int) -> None:
    """Raises: BadInput when `examples` has no such snapshot, or no longer."""
    table = _examples(spark, application)
    if not has_snapshot(spark, table, snapshot):
        raise BadInput(f"{table} has no snapshot {snapshot}", f"see 'deeplambda data history {application}'")


def _examples(spark: SparkSession, application: str) -> str:
    table = f"lake.{application}.examples"
    if not spark.catalog.tableExists(table):
        raise BadInput(f"there is no table {table}", f"run 'deeplambda batch ingest {application}' first")
    return table


def _times(spark: SparkSession, application: str, snapshot: int) -> set[datetime]:
    rows = read_snapshot(spark, f"lake.{application}.examples", snapshot).select("ingested_at").distinct().collect()
    return {row.ingested_at for row in rows}


def _waiting(spark: SparkSession, application: str, branch: str) -> _Waiting:
    table = _examples(spark, application)
    snapshot = held_rows.known(spark, application, branch)
    if snapshot == (now_at := current_snapshot(spark, table)):  # a run that was killed had published them
        held_rows.drop(spark, application, branch)
        raise BadInput(f"the rows of {branch} count already", f"see 'deeplambda data history {application}'")
    (written,) = spark.sql(f"SELECT parent_id, summary FROM {table}.snapshots WHERE snapshot_id = {snapshot}").collect()
    rows = int(written.summary.get("added-records", 0))
    return _Waiting(snapshot, written.parent_id, now_at, rows)
