"""Predictions of the stream whose events the archive lacks.

The stream scores what comes; the archive may be behind by more than Kafka keeps, and go on without what has expired. A
horizon that moves past such offsets takes their predictions out of the union view, and no new one is made in their
place.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sqlalchemy import Engine, and_, func, or_, select

from deeplambda.adapters import mysql
from deeplambda.records.expiry import Gap
from deeplambda.records.horizon import Horizon
from deeplambda.state.tables import REALTIME_PREDICTIONS

if TYPE_CHECKING:  # Spark takes long to import, which a help text need not wait for
    from pyspark.sql import DataFrame

_OFFSETS_AT_ONCE, _GAPS_AT_ONCE = 100_000, 500
"""Of one query: what it may answer is in memory at once, and each gap is a range of the index to MySQL."""


def unarchived(
    engine: Engine, application: str, archived: "DataFrame", now: Horizon, reaches: Horizon
) -> Iterator[list[str]]:
    """The ids of the real-time view's events at offsets from the horizon `now` up to `reaches` that are not in
    `archived`, some at a time. Raises: NotReady."""
    found = gaps_of(archived, now, reaches)
    if not found:
        return
    live = REALTIME_PREDICTIONS.c
    bounds = select(live.kafka_partition, func.min(live.kafka_offset), func.max(live.kafka_offset) + 1)
    with mysql.mysql_errors(), engine.connect() as connection:
        of_partitions = bounds.where(live.application == application).group_by(live.kafka_partition)
        there = {partition: (first, end) for partition, first, end in connection.execute(of_partitions)}
    within = (
        Gap(gap.partition, max(gap.from_offset, there[gap.partition][0]), min(gap.to_offset, there[gap.partition][1]))
        for gap in found
        if gap.partition in there
    )
    for some in by_offsets(within):
        positions = (
            and_(
                live.kafka_partition == gap.partition,
                live.kafka_offset >= gap.from_offset,
                live.kafka_offset < gap.to_offset,
            )
            for gap in some
        )
        ids = select(live.event_id).where(live.application == application, or_(*positions))
        with mysql.mysql_errors(), engine.connect() as connection:
            if found_ids := list(connection.scalars(ids)):
                yield found_ids


def gaps_of(archived: "DataFrame", now: Horizon, reaches: Horizon) -> list[Gap]:
    """The offsets from one horizon up to another that no row of the archive has."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    past = archived.where(now.past_spark()).select("kafka_partition", "kafka_offset")
    counts = past.groupBy("kafka_partition").agg(F.count("*").alias("events"), F.min("kafka_offset").alias("first"))
    begins = {row["kafka_partition"]: (row["first"], row["events"]) for row in counts.collect()}
    spans = {partition: (now.offsets.get(partition, 0), end) for partition, end in reaches.offsets.items()}
    found = [Gap(partition, at, begins.get(partition, (end, 0))[0]) for partition, (at, end) in spans.items()]
    broken = [partition for partition, (first, events) in begins.items() if first + events < spans[partition][1]]
    if broken:  # in the middle; of nearly every run there are none, and no row is sorted
        before = F.lag(F.col("kafka_offset") + 1).over(Window.partitionBy("kafka_partition").orderBy("kafka_offset"))
        of_broken = past.where(F.col("kafka_partition").isin(broken)).withColumn("before", before)
        found += [
            Gap(row["kafka_partition"], row["before"], row["kafka_offset"])
            for row in of_broken.where(F.col("before") < F.col("kafka_offset")).collect()
        ]
    return sorted(gap for gap in found if gap.from_offset < gap.to_offset)


def by_offsets(gaps: Iterable[Gap]) -> Iterator[list[Gap]]:
    """The gaps as groups of not too many offsets, nor too many gaps; a long one is cut. Empty ones are left out."""
    some, offsets = list[Gap](), 0
    for gap in gaps:
        at = gap.from_offset
        while at < gap.to_offset:
            end = min(gap.to_offset, at + _OFFSETS_AT_ONCE - offsets)
            some.append(Gap(gap.partition, at, end))
            offsets, at = offsets + end - at, end
            if offsets == _OFFSETS_AT_ONCE or len(some) == _GAPS_AT_ONCE:
                yield some
                some, offsets = [], 0
    if some:
        yield some
