"""Where a micro-batch is scored: a small one by the driver itself, a large one by Spark's workers.

A task that crosses from the JVM to a Python worker costs 200 ms and more on two cores, whatever its size; the model
call within it takes 15 ms. So a batch that one process scores in less than that stays in the driver, and a backlog is
divided among all workers. Both run the same function.
"""

from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa
from pydantic_core import from_json
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.streaming.query import StreamingQuery

from deeplambda.adapters.kafka import Publisher, consumer, kafka_errors, spark_options
from deeplambda.config import Settings
from deeplambda.records import topics
from speed_layer.stream.scoring import RECORDS

DRIVER_ROWS = 1_000
"""At about 50 µs for each event, what the driver scores in the time that a hand-over to a worker takes."""

Score = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


class Router:
    """The function for `foreachBatch`: scores a micro-batch and returns once Kafka has stored every record of it.

    Spark calls it on the driver for each micro-batch. query: set by `start_stream`, read for the stream's progress.
    """

    def __init__(self, settings: Settings, topic: str, score: Score) -> None:
        self._settings = settings
        self._topic = topic
        self._score = score
        self._publisher = Publisher(settings)  # its own: a flush must wait for this batch's records
        self._positions = consumer(settings, topic)
        self.query: StreamingQuery | None = None

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        backlog_rows = self._backlog_rows()
        if backlog_rows is not None and backlog_rows <= DRIVER_ROWS:
            self._in_driver(batch)
        else:
            self._on_workers(batch)

    def _in_driver(self, batch: DataFrame) -> None:
        for records in self._score(iter(batch.toArrow().to_batches())):
            for topic, key, value in zip(*(column.to_pylist() for column in records.columns), strict=True):
                self._publisher.send_bytes(topic, key.decode(), value)
        self._publisher.flush()

    def _on_workers(self, batch: DataFrame) -> None:
        (
            batch.mapInArrow(self._score, from_arrow_schema(RECORDS))
            .write.format("kafka")
            .options(**spark_options(self._settings))
            .option("kafka.max.request.size", str(topics.RECORD_LIMIT_BYTES))
            .option("kafka.acks", "all")
            .save()
        )

    def _backlog_rows(self) -> int | None:
        """Upper bound of the batch's rows: the events on Kafka past the last finished batch. None: not known."""
        progress = self.query and self.query.lastProgress
        finished = offsets_of(progress.json, self._topic) if progress else None
        if not finished:
            return None
        with kafka_errors(self._settings):
            self._positions.follow_partitions()
            ends = self._positions.end_offsets(self._positions.assignment())
        return sum(int(end) - finished.get(partition.partition, 0) for partition, end in ends.items())


def offsets_of(progress_json: str, topic: str) -> Mapping[int, int]:
    """By partition, the end offsets of a Kafka source out of the JSON of its stream's progress."""
    end_offset = from_json(progress_json)["sources"][0]["endOffset"]
    return {int(partition): offset for partition, offset in (end_offset or {}).get(topic, {}).items()}
