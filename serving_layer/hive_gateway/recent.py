"""MySQL's `recent_*` tables, made from the lake by Spark: what dashboards and REST read in milliseconds.

What is there is compared with what ought to be, and one transaction writes the difference: a label that has come costs
one row, and a reader sees the old rows or the new ones. Rows come from Spark in parts: of many classes, or long slices,
all of them are more than a driver takes.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import islice
from math import ceil
from operator import add
from typing import Any, NamedTuple

from pyspark import StorageLevel
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType
from sqlalchemy import Engine, Table, delete, select, tuple_
from sqlalchemy.dialects.mysql import insert

from deeplambda.adapters import mysql
from deeplambda.adapters.lake import current_snapshot, lacking_columns
from deeplambda.records import topics
from deeplambda.records.horizon import Horizon, batch_columns
from deeplambda.records.predictions import VIEW_SCHEMA
from deeplambda.state.tables import LABEL_LIMIT, RECENT_MODEL_METRICS, RECENT_PREDICTIONS

TABLES = (RECENT_PREDICTIONS, RECENT_MODEL_METRICS)
KEPT = timedelta(days=7)
AHEAD = timedelta(days=1)
"""How far producers' clocks may be fast: what is from later than that would be the newest for years."""
ROWS_LIMIT = 100_000
_CHUNK_ROWS = 2_000
_PART_BYTES = 8 * 2**20
"""Of the texts of a part: far below `spark.driver.maxResultSize`, above which Spark ends a job."""


@dataclass(frozen=True, kw_only=True)
class Versions:
    """The inputs of a refresh: while none has changed, another refresh would make the same tables.

    labels, metrics, withdrawals: snapshots of these tables. day: of the refresh, for rows older than KEPT leave.
    """

    horizon: Horizon
    labels: int | None
    metrics: int | None
    withdrawals: int | None
    day: int


def newest_versions(spark: SparkSession, application: str, horizon: Horizon, at: datetime) -> Versions:
    """The inputs of a refresh at `at`."""
    return Versions(
        horizon=horizon,
        labels=current_snapshot(spark, f"lake.{application}.labels"),
        metrics=current_snapshot(spark, f"lake.{application}.model_metrics"),
        withdrawals=_withdrawals(spark, application),
        day=at.toordinal(),
    )


def refresh(
    spark: SparkSession, engine: Engine, application: str, table: Table, versions: Versions, at: datetime
) -> int:
    """Bring one of TABLES up to date; returns how many rows it has. Raises: NotReady when MySQL is away."""
    query: str | None = model_metrics_sql(application)
    if table is RECENT_PREDICTIONS:
        lacking, marked = lacking_columns(spark, application, versions.horizon), versions.withdrawals is not None
        query = recent_predictions_sql(
            application, versions.horizon, at - KEPT, at + AHEAD, lacking, withdrawals=marked
        )
    with _found(spark, query) as found:
        bring_up_to_date(engine, table, application, found.rows, at_once=found.at_once)
    return found.total


def _withdrawals(spark: SparkSession, application: str) -> int | None:
    table = f"lake.{application}.withdrawals"  # a lake of before there were any has no such table
    return current_snapshot(spark, table) if spark.catalog.tableExists(table) else None


def recent_predictions_sql(
    application: str,
    horizon: Horizon,
    since: datetime,
    until: datetime,
    lacking: Collection[str] = (),
    *,
    withdrawals: bool = False,
) -> str | None:
    """Spark SQL: the batch view's newest rows with the newest label of each; None before the first batch view.

    A label that is too long for its column stays in the archive alone: one would keep all rows from being made anew.
    Nor is one looked for that came `topics.LABELS_BEFORE` all of these events: else what is read grew with the years.
    The newest are found by their ids alone: sorting whole rows would hold all of them in memory.
    lacking: columns that the horizon's snapshot does not have. withdrawals: whether some events or labels may be
    withdrawn.
    """
    if horizon.snapshot is None:
        return None
    columns = ", ".join(VIEW_SCHEMA.names)
    events, labels = (
        f"""LEFT ANTI JOIN (SELECT kafka_partition, kafka_offset FROM lake.{application}.withdrawals
            WHERE topic = '{topic}') USING (kafka_partition, kafka_offset)"""
        if withdrawals
        else ""
        for topic in ("events", "labels")
    )
    return f"""
        WITH counted AS (
            SELECT {batch_columns(lacking)} FROM lake.{application}.predictions VERSION AS OF {horizon.snapshot}
            {events}
            WHERE occurred_at BETWEEN TIMESTAMP '{since.isoformat()}' AND TIMESTAMP '{until.isoformat()}'
        ), newest AS (SELECT event_id FROM counted ORDER BY occurred_at DESC LIMIT {ROWS_LIMIT})
        SELECT {columns}, label
        FROM counted JOIN (
            newest LEFT JOIN (
                SELECT event_id, max_by(label, struct(kafka_timestamp, kafka_partition, kafka_offset)) AS label
                FROM lake.{application}.labels {labels}
                WHERE event_id IS NOT NULL AND length(label) <= {LABEL_LIMIT}
                    AND kafka_timestamp >= TIMESTAMP '{(since - topics.LABELS_BEFORE).isoformat()}' GROUP BY event_id
            ) USING (event_id)
        ) USING (event_id)"""


def model_metrics_sql(application: str) -> str:
    """Spark SQL: the final metrics of each model version, without those of single epochs."""
    return f"""
        SELECT version, split, name, max_by(value, recorded_at) AS value, max(recorded_at) AS recorded_at
        FROM lake.{application}.model_metrics WHERE epoch IS NULL GROUP BY version, split, name"""


class _Found(NamedTuple):
    """What a query finds: how many rows, and the rows, of which about `at_once` come at a time."""

    total: int
    at_once: int
    rows: Iterator[dict[str, Any]]


@contextmanager
def _found(spark: SparkSession, query: str | None) -> Iterator[_Found]:
    if query is None:
        yield _Found(0, 1, iter(()))
        return
    found = spark.sql(query).persist(StorageLevel.DISK_ONLY)
    try:
        texts = (F.octet_length(field.name) for field in found.schema if isinstance(field.dataType, StringType))
        size = F.sum(reduce(add, (F.coalesce(length, F.lit(0)) for length in texts)))
        (row,) = found.agg(F.count("*").alias("rows"), F.coalesce(size, F.lit(0)).alias("bytes")).collect()
        parts = max(1, ceil(row["rows"] / _CHUNK_ROWS), ceil(row["bytes"] / _PART_BYTES))
        at_once = max(1, ceil(row["rows"] / parts))
        yield _Found(row["rows"], at_once, map(_values, found.repartition(parts).toLocalIterator()))
    finally:
        found.unpersist()


def _values(row: Row) -> dict[str, Any]:
    values = row.asDict().items()
    return {name: value.astimezone(UTC) if isinstance(value, datetime) else value for name, value in values}


def bring_up_to_date(
    engine: Engine, table: Table, application: str, rows: Iterable[dict[str, Any]], *, at_once: int = _CHUNK_ROWS
) -> tuple[int, int]:
    """Have `table` hold `rows` of the application, and no others of it; returns how many were written and deleted.

    at_once: how many rows are held in memory. Raises: NotReady.
    """
    keys = [column for column in table.primary_key if column.name != "application"]
    own, wanted, written = table.c.application == application, set[tuple[Any, ...]](), 0
    left, upsert = iter(rows), insert(table)
    upsert = upsert.on_duplicate_key_update(
        {column.name: upsert.inserted[column.name] for column in table.columns if not column.primary_key}
    )
    with mysql.mysql_errors(), engine.begin() as connection:
        while some := list(islice(left, at_once)):
            changed = {tuple(row[key.name] for key in keys): row for row in some}
            wanted |= changed.keys()
            found = connection.execute(select(table).where(own, tuple_(*keys).in_(list(changed))))
            for there in found.mappings():
                key = tuple(there[each.name] for each in keys)
                if key in changed and all(there[name] == value for name, value in changed[key].items()):
                    del changed[key]
            if changed:
                connection.execute(upsert, [{"application": application, **row} for row in changed.values()])
            written += len(changed)
        there_now = connection.execute(select(*keys).where(own), execution_options={"yield_per": _CHUNK_ROWS})
        gone = [tuple(key) for key in there_now if tuple(key) not in wanted]
        for start in range(0, len(gone), _CHUNK_ROWS):
            connection.execute(delete(table).where(own, tuple_(*keys).in_(gone[start : start + _CHUNK_ROWS])))
    return written, len(gone)
