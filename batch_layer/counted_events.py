"""The events that count: what is learned from and scored, at a pinned snapshot of the archive."""

from pyspark.sql import DataFrame, SparkSession

from deeplambda.adapters.lake import read_snapshot


def counted_events(spark: SparkSession, application: str, snapshot: int) -> DataFrame:
    """The archived events of a snapshot of `lake.<application>.events`, with its columns."""
    return read_snapshot(spark, f"lake.{application}.events", snapshot)
