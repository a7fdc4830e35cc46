"""Events a second that the stream scores out of a backlog, against a Spark job that makes one HTTP call for each event.

The baseline is what one writes first: the same Kafka source and sink, and in `mapInArrow` a POST of each raw event to
`/v1/models/digits:predict` over a kept-alive connection. Both run in one Spark session, one after the other, against
the same model service; backlogs are large enough for four counted batches each.

Profile: the baseline spends its time in the model service, where each event costs a request of its own (about 2 ms of
parsing, hand-over and a forward pass of one row). The platform's stream spends about 13 µs an event on checking it, 2
on its features, 60 on the forward pass at full batches, 12 on writing the prediction down; Spark's hand-over to the
Python workers, some 200 ms a task, is spread over thousands of events.
"""

from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pyarrow as pa

from benchmarks.ratio import Ratio
from benchmarks.streams import drained_rows_per_s, new_topic, send, source
from deeplambda.config import load_settings
from deeplambda.loading import pack_application
from speed_layer.stream.__main__ import events, session
from speed_layer.stream.routing import Router

NAME = "stream throughput"
AIM = 10.0
BATCHES = 5
BASELINE_BATCH_ROWS = 400
BACKLOG_ROWS = 60_000


def measure() -> Ratio:
    """Needs a running stack with a champion of digits."""
    settings = load_settings()
    packed = pack_application("digits", settings)
    spark = session(settings)
    spark.sparkContext.addPyFile(str(packed.zip_file))
    url, sink = f"{settings.model_url}/v1/models/digits:predict", new_topic(settings)

    def one_call_per_event(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import urllib3

        with urllib3.PoolManager() as pool:
            for batch in batches:
                replies = [
                    pool.request(
                        "POST",
                        url,
                        body=b'{"instances":[' + value + b"]}",
                        headers={"Content-Type": "application/json"},
                    ).data
                    for value in batch["value"].to_pylist()
                ]
                yield pa.RecordBatch.from_arrays([batch["key"], pa.array(replies)], names=["key", "value"])

    with TemporaryDirectory() as checkpoints:
        topic = new_topic(settings)
        send(settings, topic, BATCHES * BASELINE_BATCH_ROWS)
        baseline = drained_rows_per_s(
            lambda: (
                source(spark, settings, topic, BASELINE_BATCH_ROWS)
                .mapInArrow(one_call_per_event, "key binary, value binary")
                .writeStream.format("kafka")
                .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
                .option("topic", sink)
                .option("checkpointLocation", f"file:{checkpoints}/baseline")
                .trigger(availableNow=True)
                .start()
            )
        )
        backlog = new_topic(settings)
        send(settings, backlog, BACKLOG_ROWS)
        router = Router(spark, settings, "digits", backlog)
        measured = drained_rows_per_s(
            lambda: (
                events(spark, settings, backlog, "earliest")
                .writeStream.foreachBatch(router)
                .option("checkpointLocation", f"file:{checkpoints}/measured")
                .trigger(availableNow=True)
                .start()
            )
        )
    spark.stop()
    return Ratio(
        name=NAME,
        value=measured / baseline,
        baseline_name="one HTTP call per event",
        baseline=baseline,
        measured=measured,
        unit="events/s",
        aim=AIM,
        higher_is_better=True,
    )
