"""The stream that scores one application's events as they arrive.

Kafka → a prediction or a dead letter for each event → Kafka, without state but the checkpoint's offsets, which move
only when every record of a batch is stored. After a crash a batch may be repeated; the views recognise its events by
their ids.
"""

import threading
from functools import cache

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.records.expiry import Reader
from deeplambda.service.checkpoints import starting_offsets
from deeplambda.service.stream_session import event_stream, slots, stream_session
from deeplambda.service.streams import Stream
from speed_layer.stream.costs import FIRST_ROWS
from speed_layer.stream.routing import Router

_ONE_SERVER = threading.Lock()
"""`foreachBatch` starts Python's callback server unless it runs; two threads at once would start two."""


def scoring_stream(spark: SparkSession, settings: Settings, name: str) -> Stream:
    """The stream of one application, not yet started."""

    @cache
    def router() -> Router:  # made once, by the first start that reaches Kafka: it keeps connections
        return Router(spark, settings, name, topics.events(name))

    return Stream(
        name, topics.events(name), lambda: start_stream(spark, settings, name, router()), lambda: router().hops_ms
    )


def start_stream(spark: SparkSession, settings: Settings, name: str, router: Router) -> StreamingQuery:
    """Start scoring one application's events, or resume it from the checkpoint; `run_streams` calls this."""
    checkpoint = f"{settings.checkpoints}/stream/{name}"
    starts = starting_offsets(spark, settings, Reader(name, "stream", topics.events(name)), checkpoint)
    with _ONE_SERVER:
        writer = events(spark, settings, topics.events(name), starts).writeStream.foreachBatch(router)
    return writer.queryName(f"predict {name}").option("checkpointLocation", checkpoint).start()


def events(spark: SparkSession, settings: Settings, topic: str, starts: str) -> DataFrame:
    """A topic as `Router` takes it. starts: `startingOffsets` of Spark's Kafka source."""
    records = event_stream(
        spark,
        settings,
        topic,
        starts,
        maxOffsetsPerTrigger=FIRST_ROWS,  # the router says how many from its first batch on
        minPartitions=slots(spark),
    )
    return records.select("key", "value", "topic", "partition", "offset", "timestamp")


def session(settings: Settings) -> SparkSession:
    """The stream's Spark session. A worker holds an Arrow batch at once, whichever of its two bounds it meets first."""
    conf = {
        "spark.driver.memory": "512m",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "2000",
        "spark.sql.execution.arrow.maxBytesPerBatch": "16m",
    }
    return stream_session(settings, "stream", conf)


def warm_up(spark: SparkSession) -> None:
    """Start every worker's Python process now, so that the first batches do not wait seconds for it."""
    cores = spark.sparkContext.defaultParallelism
    spark.range(0, cores, numPartitions=cores).mapInArrow(lambda batches: batches, "id long").collect()
