"""Score events as they arrive: `python -m speed_layer.stream`.

Kafka → a prediction or a dead letter for each event → Kafka, without state but the checkpoint's offsets, which move
only when every record of a batch is stored. What a crash repeats, the views tell by event id.
"""

import logging
import signal
import threading

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from deeplambda import topics
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.lake import spark_session
from deeplambda.config import Settings, load_settings
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.runtime_metrics import Meter
from deeplambda.stack.heartbeat import beat
from speed_layer.stream.routing import Router
from speed_layer.stream.scoring import scoring

BATCH_LIMIT_ROWS = 20_000
_BEAT_S = 2
_LOG = logging.getLogger(__name__)


def start_stream(spark: SparkSession, settings: Settings, packed: PackedApplication) -> StreamingQuery:
    """Start scoring one application's events."""
    spark.sparkContext.addPyFile(str(packed.archive))
    topic = topics.events(packed.name)
    router = Router(settings, topic, scoring(settings, packed))
    router.query = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
        .option("kafka.max.partition.fetch.bytes", str(topics.RECORD_LIMIT_BYTES))
        .option("subscribe", topic)
        .option("startingOffsets", "earliest")
        .option("failOnDataLoss", "true")
        .option("maxOffsetsPerTrigger", BATCH_LIMIT_ROWS)
        .load()
        .select("key", "value", "topic", "partition", "offset", "timestamp")
        .writeStream.foreachBatch(router)
        .queryName(f"predict {packed.name}")
        .option("checkpointLocation", f"{settings.checkpoints}/stream/{packed.name}")
        .start()
    )
    return router.query


def main() -> None:
    """Run until SIGTERM; fails, to be restarted from the checkpoint, when a stream does."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings, stop = load_settings(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    spark = spark_session(
        settings,
        "stream",
        {"spark.driver.memory": "512m", "spark.sql.execution.arrow.maxRecordsPerBatch": "2000"},
    )
    queries = {name: start_stream(spark, settings, pack_application(name, settings)) for name in settings.applications}
    _LOG.info("scoring %s", ", ".join(queries))
    with Publisher(settings) as figures:
        meters = {name: Meter(figures, layer="speed", part="stream", application=name) for name in queries}
        reported: dict[str, int] = {}
        while not stop.wait(_BEAT_S):
            for name, query in queries.items():
                if failure := query.exception():
                    raise failure
                progress = query.lastProgress
                if progress and progress["numInputRows"] and reported.get(name) != progress["batchId"]:
                    reported[name] = progress["batchId"]
                    meters[name].measure("scored", progress["numInputRows"], "rows")
                    meters[name].measure("throughput", progress["processedRowsPerSecond"], "rows/s")
                    meters[name].measure("batch_duration", progress["durationMs"]["triggerExecution"] / 1e3, "s")
            figures.flush()
            beat(settings, "stream", streams=len(queries))
    for query in queries.values():
        query.stop()
    spark.stop()


if __name__ == "__main__":
    main()
