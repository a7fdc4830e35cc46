"""MySQL's `recent_*` tables, made from the lake by Spark: what dashboards and REST read in milliseconds.

What is there is compared with what ought to be, and one transaction writes the difference: a label that has come costs
one row, and a reader sees the old rows or the new ones.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pyspark.sql import SparkSession
from sqlalchemy import Engine, Table, delete, select, tuple_
from sqlalchemy.dialects.mysql import insert

from deeplambda.adapters import mysql
from deeplambda.adapters.lake import current_snapshot, lacking_columns
from deeplambda.records import topics
from deeplambda.records.horizon import Horizon, batch_columns
from deeplambda.records.predictions import VIEW_SCHEMA
from deeplambda.state.tables import LABEL_LIMIT, RECENT_MODEL_METRICS, RECENT_PREDICTIONS

KEPT = timedelta(days=7)
ROWS_LIMIT = 100_000
_CHUNK_ROWS = 2_000


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


def refresh(spark: SparkSession, engine: Engine, application: str, versions: Versions, at: datetime) -> int:
    """Bring both tables up to date; returns the rows of `recent_predictions`. Raises: NotReady when MySQL is away."""
    lacking = lacking_columns(spark, application, versions.horizon)
    marked = versions.withdrawals is not None
    query = recent_predictions_sql(application, versions.horizon, at - KEPT, lacking, withdrawals=marked)
    predictions = _rows(spark, query)
    bring_up_to_date(engine, RECENT_PREDICTIONS, application, predictions)
    bring_up_to_date(engine, RECENT_MODEL_METRICS, application, _rows(spark, model_metrics_sql(application)))
    return len(predictions)


def _withdrawals(spark: SparkSession, application: str) -> int | None:
    table = f"lake.{application}.withdrawals"  # a lake of before there were any has no such table
    return current_snapshot(spark, table) if spark.catalog.tableExists(table) else None


def recent_predictions_sql(
    application: str, horizon: Horizon, since: datetime, lacking: Collection[str] = (), *, withdrawals: bool = False
) -> str | None:
    """Spark SQL: the batch view's newest rows with the newest label of each; None before the first batch view.

    A label that is too long for its column stays in the archive alone: one would keep all rows from being made anew.
    Nor is one looked for that came `topics.LABELS_BEFORE` all of these events: else what is read grew with the years.
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
        SELECT {columns}, label
        FROM (
            SELECT {batch_columns(lacking)} FROM lake.{application}.predictions VERSION AS OF {horizon.snapshot}
            {events}
            WHERE occurred_at >= TIMESTAMP '{since.isoformat()}' ORDER BY occurred_at DESC LIMIT {ROWS_LIMIT}
        )
        LEFT JOIN (
            SELECT event_id, max_by(label, struct(kafka_timestamp, kafka_offset)) AS label
            FROM lake.{application}.labels {labels}
            WHERE event_id IS NOT NULL AND length(label) <= {LABEL_LIMIT}
                AND kafka_timestamp >= TIMESTAMP '{(since - topics.LABELS_BEFORE).isoformat()}' GROUP BY event_id
        ) USING (event_id)"""


def model_metrics_sql(application: str) -> str:
    """Spark SQL: the final metrics of each model version, without those of single epochs."""
    return f"""
        SELECT version, split, name, max_by(value, recorded_at) AS value, max(recorded_at) AS recorded_at
        FROM lake.{application}.model_metrics WHERE epoch IS NULL GROUP BY version, split, name"""


def _rows(spark: SparkSession, query: str | None) -> list[dict[str, Any]]:
    if query is None:
        return []
    rows: list[dict[str, Any]] = spark.sql(query).toArrow().to_pylist()
    return rows


def bring_up_to_date(engine: Engine, table: Table, application: str, rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Have `table` hold `rows` of the application, and no others of it; returns how many were written and deleted.

    Raises: NotReady.
    """
    keys = [column for column in table.primary_key if column.name != "application"]
    wanted = {tuple(row[key.name] for key in keys): row for row in rows}
    own = table.c.application == application
    gone = []
    with mysql.mysql_errors(), engine.begin() as connection:
        found = connection.execute(select(table).where(own), execution_options={"yield_per": _CHUNK_ROWS})
        for row in found.mappings():
            key = tuple(row[each.name] for each in keys)
            if key not in wanted:
                gone.append(key)
            elif all(row[name] == value for name, value in wanted[key].items()):
                del wanted[key]
        for start in range(0, len(gone), _CHUNK_ROWS):
            connection.execute(delete(table).where(own, tuple_(*keys).in_(gone[start : start + _CHUNK_ROWS])))
        upsert = insert(table)
        upsert = upsert.on_duplicate_key_update(
            {column.name: upsert.inserted[column.name] for column in table.columns if not column.primary_key}
        )
        changed = [{"application": application, **row} for row in wanted.values()]
        for start in range(0, len(changed), _CHUNK_ROWS):
            connection.execute(upsert, changed[start : start + _CHUNK_ROWS])
    return len(changed), len(gone)
