"""A day of the archive on fast forward: what a table of many commits costs with upkeep on, late against early.

Each commit appends one row, as the archive does every five seconds; upkeep runs after every 100 and keeps snapshots
for 20 s. Measured are the bytes and the number of the metadata files, and the seconds of counting the rows, which reads
no data. The ratio is the worst of the three. A tag names one of the first snapshots of that table, a version's card
another: at the end both must be readable, or there is no ratio.
"""

import secrets
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import NamedTuple

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from sqlalchemy import Engine

from batch_layer.upkeep import maintain
from benchmarks.ratio import Ratio
from deeplambda.adapters import mysql
from deeplambda.adapters.lake import change_tag, create_tables, current_snapshot, read_snapshot, spark_session
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import load_settings
from deeplambda.loading import pack_application
from deeplambda.state import registry

NAME = "metadata of the archive"
AIM = 1.5
EARLY, LATE = 100, 1_000
UPKEEP_EVERY, _KEPT = 100, timedelta(seconds=20)
_TABLE = "lake.digits.labels"  # nothing is sent to it while this runs


class Cost(NamedTuple):
    """Of one table: its metadata files, and a count query."""

    bytes: int
    files: int
    count_s: float

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes, {self.files} files, {self.count_s:.2f} s to count"


def measure(early: int = EARLY, late: int = LATE) -> Ratio:
    """After `late` commits, against after `early`; upkeep has to have run at both. Says on stderr how far it is."""
    settings = load_settings()
    store = ObjectStore(settings)
    with spark_session(settings, "benchmark") as spark:
        create_tables(spark, pack_application("digits", settings).load())
        columns, there = spark.table(_TABLE).columns, spark.table(_TABLE).count()
        pins = {early: partial(_tag, spark), early // 2: partial(_publish, mysql.engine(settings, "platform"))}
        pinned: dict[int, int] = {}
        costs, begun = {}, time.perf_counter()
        for commit in range(1, late + 1):
            at = F.current_timestamp()
            row = spark.range(1).select(
                F.lit(f"event-{commit}").alias("event_id"),
                F.lit("7").alias("label"),
                F.lit(0).alias("kafka_partition"),
                F.lit(commit).cast("bigint").alias("kafka_offset"),
                at.alias("kafka_timestamp"),
                at.alias("archived_at"),
            )
            row.select(columns).writeTo(_TABLE).append()
            if commit % UPKEEP_EVERY == 0:
                maintain(spark, settings, "digits", orphans=False, kept_snapshots=_KEPT)
                rate = commit / (time.perf_counter() - begun)
                print(f"{commit:,} of {late:,} commits, {rate:.1f} a second", file=sys.stderr, flush=True)
            if commit in (early, late):
                costs[commit] = _cost(spark, store)
            if commit in pins:
                pinned[commit] = current_snapshot(spark, _TABLE) or 0
                pins[commit](pinned[commit])
        for commit, snapshot in pinned.items():
            rows = read_snapshot(spark, _TABLE, snapshot).count()
            assert rows == there + commit, f"the snapshot of commit {commit} has {rows} rows"
    first, last = costs[early], costs[late]
    worst = max(Cost._fields, key=lambda name: getattr(last, name) / getattr(first, name))
    return Ratio(
        name=f"{NAME} after {late:,} commits: {worst}",
        value=getattr(last, worst) / getattr(first, worst),
        baseline_name=f"after {early:,} ({first})",
        baseline=getattr(first, worst),
        measured=getattr(last, worst),
        unit=f"({last})",
        aim=AIM,
        higher_is_better=False,
    )


def _tag(spark: SparkSession, snapshot: int) -> None:
    change_tag(spark, _TABLE, f"CREATE OR REPLACE TAG `early` AS OF VERSION {snapshot}")


def _publish(engine: Engine, snapshot: int) -> None:
    """A version like the champion, which learned from a snapshot of the labels."""
    with engine.connect() as connection:
        champion = registry.champion(connection, "digits")
    assert champion is not None
    like = champion.model_copy(update={"run": f"upkeep-{secrets.token_hex(4)}", "labels_snapshot": snapshot})
    registry.publish(engine, "digits", like.run, lambda version: like.model_copy(update={"version": version}))


def _cost(spark: SparkSession, store: ObjectStore) -> Cost:
    kept = store.list("warehouse/digits.db/labels/metadata/")
    seconds = [_timed(lambda: spark.table(_TABLE).count()) for _ in range(5)]
    return Cost(sum(found.bytes for found in kept), len(kept), statistics.median(seconds))


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    print(measure())
