"""How far the archive has come: its streams write what Kafka has every few seconds, and may be behind.

A partition may end with what is no record, the mark of a transaction, and what lies before its end may have expired: of
those the archive has none.
"""

import time
from collections.abc import Mapping
from contextlib import closing

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from deeplambda.adapters.kafka import offset_ranges
from deeplambda.adapters.kafka_ranges import RangeReader
from deeplambda.config import Settings
from deeplambda.errors import NotReady

_WITHIN_S = 120.0  # its streams commit every 5 s; one that stands still is its own alert
_ASKED_S = 2.0


def archived_to(
    spark: SparkSession, settings: Settings, application: str, topic: str, wanted: Mapping[int, int]
) -> dict[int, int]:
    """By partition, the first offset that the archive may lack, once it has all that Kafka has before `wanted`. topic:
    `events` or `labels`.

    Raises: NotReady when that takes more than two minutes.
    """
    table, until_s = f"lake.{application}.{topic}", time.monotonic() + _WITHIN_S
    while True:
        spark.catalog.refreshTable(table)
        ends = spark.table(table).groupBy("kafka_partition").agg((F.max("kafka_offset") + 1).alias("end"))
        archived = {row["kafka_partition"]: row["end"] for row in ends.collect()}
        lacking = {p: (archived.get(p, 0), end) for p, end in wanted.items() if archived.get(p, 0) < end}
        behind = _with_records(settings, f"{application}.{topic}", lacking) if lacking else {}
        if not behind:
            return archived | {p: end for p, (_, end) in lacking.items()}
        if time.monotonic() > until_s:
            raise NotReady(
                f"{table} is behind Kafka in partition {min(behind)}: {archived.get(min(behind), 0)} of "
                f"{behind[min(behind)]} {topic}",
                "see 'deeplambda status' and 'deeplambda logs archive'",
            )
        time.sleep(_ASKED_S)


def _with_records(settings: Settings, topic: str, ranges: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """The ends of those ranges of offsets, by partition, in which Kafka has a record. Raises: NotReady."""
    of_kafka, found = offset_ranges(settings, topic), dict[int, int]()
    for partition, (begins, end) in ranges.items():
        first, last = of_kafka.get(partition, (0, 0))
        there = max(begins, first), min(end, last)
        with closing(RangeReader(settings, topic)) as reader:
            if there[0] < there[1] and next(reader.chunks({partition: there}), None):
                found[partition] = end
    return found
