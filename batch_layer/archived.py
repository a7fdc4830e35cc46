"""How far the archive has come: its streams write what Kafka has every few seconds, and may be behind."""

import time
from collections.abc import Mapping

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from deeplambda.errors import NotReady

_WITHIN_S = 120.0  # its streams commit every 5 s; one that stands still is its own alert
_ASKED_S = 2.0


def archived_to(spark: SparkSession, application: str, topic: str, wanted: Mapping[int, int]) -> dict[int, int]:
    """By partition, the first offset that the archive lacks, once that is `wanted` or past it. topic: `events` or
    `labels`.

    Raises: NotReady when that takes more than two minutes.
    """
    table, until_s = f"lake.{application}.{topic}", time.monotonic() + _WITHIN_S
    while True:
        spark.catalog.refreshTable(table)
        ends = spark.table(table).groupBy("kafka_partition").agg((F.max("kafka_offset") + 1).alias("end"))
        archived = {row["kafka_partition"]: row["end"] for row in ends.collect()}
        behind = {p: end for p, end in wanted.items() if archived.get(p, 0) < end}
        if not behind:
            return archived
        if time.monotonic() > until_s:
            raise NotReady(
                f"{table} is behind Kafka in partition {min(behind)}: {archived.get(min(behind), 0)} of "
                f"{behind[min(behind)]} {topic}",
                "see 'deeplambda status' and 'deeplambda logs archive'",
            )
        time.sleep(_ASKED_S)
