"""Where a micro-batch is scored: a small one by the driver itself, a large one by Spark's workers.

A task that crosses from the JVM to a Python worker costs 200 ms and more on two cores, whatever its size; the model
call within it takes 15 ms. So a batch that one process scores in less than that stays in the driver, which reads its
records from Kafka itself, a few MiB at a time; a backlog is divided among all workers. Both run the same code.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pydantic_core import from_json
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema

from deeplambda.adapters.kafka import Publisher, spark_options
from deeplambda.adapters.kafka_ranges import RangeReader, Row
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.records import topics
from speed_layer.stream.costs import FIRST_ROWS, Costs, next_limit
from speed_layer.stream.scoring import RECORDS, Scorer, scoring

DRIVER_BYTES = 32 * 1024 * 1024
"""What the driver takes of large events at most, by the size of the first ones: workers decode them side by side."""

Ranges = Mapping[int, tuple[int, int]]
"""By partition, the first offset and the one after the last."""


class Router:
    """The function for `foreachBatch`: scores a micro-batch and returns once Kafka has stored every record of it.

    Spark calls it on the driver for each micro-batch of a stream that reads `topic` by `EventSource`.
    hops_ms: where the time of the last one went that the driver has scored; of the workers it is not known.
    """

    def __init__(self, settings: Settings, name: str, topic: str) -> None:
        self._settings, self._name, self._topic = settings, name, topic
        self._scorer = Scorer(settings, name)
        self._publisher = Publisher(settings)  # its own: a flush must wait for this batch's records
        self._reader = RangeReader(settings, topic)
        self._costs, self._limit = Costs(), FIRST_ROWS
        self.hops_ms: Mapping[str, float] = {}

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        source = batch.sparkSession._jvm.deeplambda.spark.EventSource
        planned = source.batch(self._topic)
        if planned is None:
            raise NotReady(f"what the micro-batch {batch_id} of {self._topic} holds is not known", "it is tried again")
        ranges = ranges_of(planned)
        rows = sum(end - first for first, end in ranges.values())
        small = self._costs.favour_driver(rows)
        started_s = time.perf_counter()
        in_driver = small and self._in_driver(ranges, rows)
        if not in_driver:
            self._on_workers(batch)
        took_s = time.perf_counter() - started_s
        if in_driver:
            self._costs.driver_took(rows, took_s)
        elif not small:  # a few large events tell nothing of the hand-over
            self._costs.workers_took(rows, took_s)
        limit = next_limit(self._limit, rows, took_s)
        if limit != self._limit:
            self._limit = limit
            limits = batch.sparkSession._jvm.org.apache.spark.sql.connector.read.streaming.ReadLimit
            source.limit(self._topic, limits.maxRows(limit))

    def _in_driver(self, ranges: Ranges, rows: int) -> bool:
        """Score the batch here; False, with nothing done, when its events are large."""
        hops_ms = self._scorer.hops_ms = defaultdict(float)
        with _timed(hops_ms, "read"):
            chunks = self._reader.chunks(ranges)
            chunk = next(chunks, [])
        if _mean_bytes(chunk) * rows > DRIVER_BYTES:
            return False
        while chunk:
            for topic, key, value in self._scorer.records(chunk):
                self._publisher.send_bytes(topic, key.decode(), value)
            with _timed(hops_ms, "read"):
                chunk = next(chunks, [])
        with _timed(hops_ms, "publish"):
            self._publisher.flush()
        self.hops_ms = hops_ms
        return True

    def _on_workers(self, batch: DataFrame) -> None:
        self.hops_ms = {}
        slots = batch.sparkSession.sparkContext.defaultParallelism
        (
            batch.coalesce(slots)  # a task for each partition of many would pay for as many hand-overs
            .mapInArrow(scoring(self._settings, self._name), from_arrow_schema(RECORDS))
            .write.format("kafka")
            .options(**spark_options(self._settings))
            .option("kafka.max.request.size", str(topics.RECORD_LIMIT_BYTES))
            .option("kafka.acks", "all")
            .save()
        )


def ranges_of(batch_json: str) -> Ranges:
    """What `EventSource` tells of a micro-batch, with the pieces of a partition joined."""
    ranges: dict[int, tuple[int, int]] = {}
    for partition, first, end in from_json(batch_json):
        known_first, known_end = ranges.get(partition, (first, end))
        ranges[partition] = min(first, known_first), max(end, known_end)
    return ranges


@contextmanager
def _timed(hops_ms: defaultdict[str, float], hop: str) -> Iterator[None]:
    started_s = time.perf_counter()
    yield
    hops_ms[hop] += (time.perf_counter() - started_s) * 1e3


def _mean_bytes(rows: list[Row]) -> float:
    return sum(len(row["value"] or b"") for row in rows) / len(rows) if rows else 0.0
