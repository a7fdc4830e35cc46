"""Events a second that the stream scores out of a backlog, against a Spark job that makes one HTTP call for each event.

The baseline is what one writes first: the same Kafka source and sink, and in `mapInArrow` a POST of each raw event to
`/v1/models/digits:predict` over a kept-alive connection. Both run in one Spark session, against the same model service;
the baseline's backlog makes two counted batches. They take turns, and the median of the rounds' ratios is told.

Profile: the baseline spends its time in the model service, where each event costs a request of its own (about 2 ms of
parsing, hand-over and a forward pass of one row). The platform's stream spends about 13 µs an event on checking it, 2
on its features, 60 on the forward pass at full batches, 12 on writing the prediction down; Spark's hand-over to the
Python workers, some 200 ms a task, is spread over thousands of events.
"""

import statistics
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pyarrow as pa
from pyspark.sql import SparkSession

from benchmarks.ratio import Ratio
from benchmarks.streams import drained_rows_per_s, new_topic, send, source
from deeplambda.config import Settings, load_settings
from deeplambda.loading import pack_application
from deeplambda.records import topics
from speed_layer.stream.query import events, session
from speed_layer.stream.routing import Router

NAME = "stream throughput"
AIM = 10.0
BATCHES = 3
BASELINE_BATCH_ROWS = 2_000
BACKLOG_ROWS = 60_000
ROUNDS = 3


def measure() -> Ratio:
    """Needs a running stack with a champion of digits."""
    settings = load_settings()
    packed = pack_application("digits", settings)
    singly, backlog = new_topic(settings), new_topic(settings)
    send(settings, singly, BATCHES * BASELINE_BATCH_ROWS)
    send(settings, backlog, BACKLOG_ROWS)
    with session(settings) as spark:
        spark.sparkContext.addPyFile(str(packed.zip_file))
        rounds = [
            (_baseline_rows_per_s(spark, settings, singly), _rows_per_s(spark, settings, backlog))
            for _ in range(ROUNDS)
        ]
    return Ratio(
        name=NAME,
        value=statistics.median(ours / theirs for theirs, ours in rounds),
        baseline_name="one HTTP call per event",
        baseline=statistics.median(theirs for theirs, _ in rounds),
        measured=statistics.median(ours for _, ours in rounds),
        unit="events/s",
        aim=AIM,
        higher_is_better=True,
    )


def _baseline_rows_per_s(spark: SparkSession, settings: Settings, backlog: str) -> float:
    url, sink = f"{settings.model_url}/v1/models/digits:predict", new_topic(settings)

    def one_call_per_event(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import urllib3

        with urllib3.PoolManager(headers={"Content-Type": "application/json"}) as pool:
            for batch in batches:
                replies = [
                    pool.request("POST", url, body=b'{"instances":[' + value + b"]}")
                    for value in batch["value"].to_pylist()
                ]
                if refused := [reply for reply in replies if reply.status != 200]:
                    raise RuntimeError(f"{len(refused)} events were refused, the first with {refused[0].data!r}")
                yield pa.RecordBatch.from_arrays(
                    [batch["key"], pa.array([reply.data for reply in replies])], names=["key", "value"]
                )

    with TemporaryDirectory() as checkpoint:
        return drained_rows_per_s(
            settings,
            lambda: (
                source(spark, settings, backlog, BASELINE_BATCH_ROWS)
                .mapInArrow(one_call_per_event, "key binary, value binary")
                .writeStream.format("kafka")
                .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
                .option("topic", sink)
                .option("checkpointLocation", f"file:{checkpoint}")
                .trigger(availableNow=True)
                .start()
            ),
            results=sink,
            rows=BATCHES * BASELINE_BATCH_ROWS,
        )


def _rows_per_s(spark: SparkSession, settings: Settings, backlog: str) -> float:
    router = Router(spark, settings, "digits", backlog)
    with TemporaryDirectory() as checkpoint:
        return drained_rows_per_s(
            settings,
            lambda: (
                events(spark, settings, backlog, "earliest")
                .writeStream.foreachBatch(router)
                .option("checkpointLocation", f"file:{checkpoint}")
                .trigger(availableNow=True)
                .start()
            ),
            results=topics.predictions("digits"),
            rows=BACKLOG_ROWS,
        )
