"""Seconds of a recomputation after 1 % more events, against 5 % of scoring all of them plus 15 s for Spark's jobs.

Events are made of the examples that the stack has, and put where the archive stream puts its own.
"""

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from batch_layer.recompute import recompute
from benchmarks.ratio import Ratio
from deeplambda.adapters.lake import create_tables, spark_session
from deeplambda.config import load_settings
from deeplambda.loading import pack_application

NAME = "recomputation after 1 % more events"
AIM = 1.0
BASELINE = "5 % of scoring all + 15 s"
SHARE, START_S = 0.05, 15.0
_ALL, _MORE = 1.0, 0.01
_PARTITION = 1_000  # not one of the topic's


def measure() -> Ratio:
    """One recomputation of all, one of what is new."""
    settings = load_settings()
    packed = pack_application("digits", settings)
    spark = spark_session(settings, "benchmark")
    create_tables(spark, packed.load())
    _archive(spark, "all", _ALL)
    whole = recompute(spark, settings, packed, whole=True)
    _archive(spark, "more", _MORE)
    grown = recompute(spark, settings, packed)
    spark.stop()
    bound_s = SHARE * whole.duration_s + START_S
    return Ratio(
        name=NAME,
        value=grown.duration_s / bound_s,
        baseline_name=f"{BASELINE} ({whole.scored:,} events: {whole.duration_s:.0f} s)",
        baseline=bound_s,
        measured=grown.duration_s,
        unit=f"s for {grown.scored:,} events",
        aim=AIM,
        higher_is_better=False,
    )


def _archive(spark: SparkSession, run: str, share: float) -> None:
    events, at = "lake.digits.events", F.current_timestamp()
    last = spark.table(events).where(F.col("kafka_partition") == _PARTITION).agg(F.max("kafka_offset")).first()
    first_offset = 0 if last is None or last[0] is None else last[0] + 1
    rows = spark.table("lake.digits.examples").sample(share, seed=7).select("event_id", "image").collect()
    numbered = spark.createDataFrame([(n, *row) for n, row in enumerate(rows)], "n BIGINT, name STRING, image BINARY")
    event_id = F.concat(F.lit(f"{run}-"), F.col("name"))
    payload = F.to_json(
        F.struct(
            event_id.alias("event_id"),
            F.lit("2026-01-02T03:04:05Z").alias("occurred_at"),
            F.base64("image").alias("image"),
        )
    )
    numbered.select(
        event_id.alias("event_id"),
        F.lit(_PARTITION).alias("kafka_partition"),
        (F.col("n") + first_offset).alias("kafka_offset"),
        at.alias("kafka_timestamp"),
        payload.cast("binary").alias("value"),
        at.alias("archived_at"),
    ).select(spark.table(events).columns).writeTo(events).append()


if __name__ == "__main__":
    print(measure())
