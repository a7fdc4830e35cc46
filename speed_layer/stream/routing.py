"""Where a micro-batch is scored: a small one by the driver itself, a large one by Spark's workers.

A task that crosses from the JVM to a Python worker costs 200 ms and more on two cores, whatever its size; the model
call within it takes 15 ms. So a batch that one process scores in less than that stays in the driver, which reads its
records from Kafka itself, a few MiB at a time; a backlog is divided among all workers. Both run the same code.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import chain, cycle
from typing import TypeVar

from pydantic_core import from_json
from pyspark.sql import DataFrame, SparkSession

from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.kafka_ranges import RangeReader, Row
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from speed_layer.stream.costs import FIRST_ROWS, Costs, next_limit
from speed_layer.stream.scoring import Scorer, timed
from speed_layer.stream.workers import Workers

DRIVER_BYTES = 32 * 1024 * 1024
"""What the driver takes of large events at most, by the size of the first ones: workers decode them side by side."""

AT_ONCE = 2
"""Chunks of a batch that the driver has at a time: while the model service scores one, the next is made ready."""

Ranges = Mapping[int, tuple[int, int]]
"""By partition, the first offset and the one after the last."""

T = TypeVar("T")
R = TypeVar("R")


class Router:
    """The function for `foreachBatch`: scores a micro-batch and returns once Kafka has stored every record of it.

    Spark calls it on the driver for each micro-batch of a stream that reads `topic` by `EventSource`.
    hops_ms: where the time of the last one went, that of chunks or tasks at once added up.
    """

    def __init__(self, spark: SparkSession, settings: Settings, name: str, topic: str) -> None:
        self._settings, self._name, self._topic = settings, name, topic
        # Looked up once: each dot asks the JVM.
        source = spark._jvm.deeplambda.spark.EventSource
        self._planned, self._take = source.batch, source.limit
        self._max_rows = spark._jvm.org.apache.spark.sql.connector.read.streaming.ReadLimit.maxRows
        self._scorers = [Scorer(settings, name) for _ in range(AT_ONCE)]
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=f"score-{name}")
        self._publisher = Publisher(settings)  # its own: a flush must wait for this batch's records
        self._reader = RangeReader(settings, topic)
        self._workers = Workers(spark, settings, name)
        self._costs, self._limit = Costs(), FIRST_ROWS
        self.hops_ms: Mapping[str, float] = {}

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        planned = self._planned(self._topic)
        if planned is None:
            raise NotReady(f"what the micro-batch {batch_id} of {self._topic} holds is not known", "it is tried again")
        ranges = ranges_of(planned)
        rows = sum(end - first for first, end in ranges.values())
        small = self._costs.favour_driver(rows)
        started_s = time.perf_counter()
        in_driver = small and self._in_driver(ranges, rows)
        if not in_driver:
            self.hops_ms = self._workers.score(batch)
        took_s = time.perf_counter() - started_s
        if in_driver:
            self._costs.driver_took(rows, took_s)
        elif not small:  # a few large events tell nothing of the hand-over
            self._costs.workers_took(rows, took_s)
        limit = next_limit(self._limit, rows, took_s)
        if limit != self._limit:
            self._limit = limit
            self._take(self._topic, self._max_rows(limit))

    def _in_driver(self, ranges: Ranges, rows: int) -> bool:
        """Score the batch here; False, with nothing done, when its events are large."""
        hops_ms: defaultdict[str, float] = defaultdict(float)
        for scorer in self._scorers:
            scorer.hops_ms.clear()
        chunks = self._chunks(ranges, hops_ms)
        first = next(chunks, [])
        if _mean_bytes(first) * rows > DRIVER_BYTES:
            return False
        calls = [scorer.records for scorer in self._scorers]
        with closing(in_turn(self._threads, calls, chain([first], chunks))) as scored:
            for records in scored:
                with timed(hops_ms, "publish"):
                    for record in records:
                        self._publisher.send_record(*record)
        with timed(hops_ms, "publish"):
            self._publisher.flush()
        for scorer in self._scorers:
            for hop, took_ms in scorer.hops_ms.items():
                hops_ms[hop] += took_ms
        self.hops_ms = hops_ms
        return True

    def _chunks(self, ranges: Ranges, hops_ms: defaultdict[str, float]) -> Iterator[list[Row]]:
        chunks = self._reader.chunks(ranges)
        while True:
            with timed(hops_ms, "read"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk


def in_turn(threads: Executor, calls: Sequence[Callable[[T], R]], items: Iterable[T]) -> Generator[R, None, None]:
    """What each call in its turn makes of an item, in the items' order. As many are under way as there are calls, each
    on one item; once the generator is closed, or a call has raised, none is."""
    under_way: deque[Future[R]] = deque()
    try:
        for item, call in zip(items, cycle(calls), strict=False):
            under_way.append(threads.submit(call, item))
            if len(under_way) == len(calls):
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        wait(under_way)


def ranges_of(batch_json: str) -> Ranges:
    """What `EventSource` tells of a micro-batch, with the pieces of a partition joined."""
    ranges: dict[int, tuple[int, int]] = {}
    for partition, first, end in from_json(batch_json):
        known_first, known_end = ranges.get(partition, (first, end))
        ranges[partition] = min(first, known_first), max(end, known_end)
    return ranges


def _mean_bytes(rows: list[Row]) -> float:
    return sum(len(row["value"] or b"") for row in rows) / len(rows) if rows else 0.0
