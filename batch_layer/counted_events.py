"""The events and labels that count: those of the archive that nobody has withdrawn."""

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from deeplambda.adapters.lake import current_snapshot, read_snapshot

POSITION = ("kafka_partition", "kafka_offset")
SENT_TO_ALL = 1_000_000
"""Positions, at most, that are sent to every executor instead of shuffling the archive: 12 MB."""
NONE_WITHDRAWN = 0
"""In place of a snapshot of the withdrawals: all records count."""


def counted_events(
    spark: SparkSession, application: str, snapshot: int | None = None, withdrawals: int | None = None
) -> DataFrame:
    """The archived events of a snapshot without those that a snapshot of the withdrawals names; by default the newest
    of both."""
    return counted(spark, application, "events", _read(spark, f"lake.{application}.events", snapshot), withdrawals)


def counted_labels(
    spark: SparkSession, application: str, snapshot: int | None = None, withdrawals: int | None = None
) -> DataFrame:
    """The same of labels."""
    return counted(spark, application, "labels", _read(spark, f"lake.{application}.labels", snapshot), withdrawals)


def counted(
    spark: SparkSession, application: str, topic: str, rows: DataFrame, withdrawals: int | None = None
) -> DataFrame:
    """`rows` of the archive, less the withdrawn ones. topic: `events` or `labels`."""
    gone = withdrawn(spark, application, topic, withdrawals)
    if gone is None:
        return rows
    return rows.join(gone, list(POSITION), "left_anti").select(rows.columns)


def withdrawn(spark: SparkSession, application: str, topic: str, snapshot: int | None = None) -> DataFrame | None:
    """The positions that are withdrawn, by a snapshot of the withdrawals (default: the newest); None where there are
    none."""
    if snapshot == NONE_WITHDRAWN or (snapshot is None and withdrawals_snapshot(spark, application) is None):
        return None
    marks = _read(spark, f"lake.{application}.withdrawals", snapshot)
    positions = marks.where(F.col("topic") == topic).select(*POSITION).distinct()
    rows = positions.count()
    if not rows:
        return None
    return F.broadcast(positions) if rows <= SENT_TO_ALL else positions


def withdrawals_snapshot(spark: SparkSession, application: str) -> int | None:
    """What says, beside a snapshot of the archive, which of its records count; None where all do."""
    table = f"lake.{application}.withdrawals"  # a lake of before there were withdrawals has no such table
    return current_snapshot(spark, table) if spark.catalog.tableExists(table) else None


def _read(spark: SparkSession, table: str, snapshot: int | None) -> DataFrame:
    return spark.table(table) if snapshot is None else read_snapshot(spark, table, snapshot)
