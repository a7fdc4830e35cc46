"""Score events as they arrive: `python -m speed_layer.stream`.

Kafka → a prediction or a dead letter for each event → Kafka, without state but the checkpoint's offsets, which move
only when every record of a batch is stored. After a crash a batch may be repeated; the views
recognise its events by their ids.
"""

from functools import partial

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from deeplambda.adapters.kafka import spark_options
from deeplambda.adapters.lake import spark_session
from deeplambda.config import Settings, load_settings
from deeplambda.records import topics
from deeplambda.service.logs import log_to_stderr
from deeplambda.service.streams import Stream, run_streams
from speed_layer.stream.routing import Router
from speed_layer.stream.scoring import scoring

BATCH_LIMIT_ROWS = 20_000


def start_stream(spark: SparkSession, settings: Settings, name: str, router: Router) -> StreamingQuery:
    """Start scoring one application's events, or resume it from the checkpoint; `run_streams` calls this."""
    router.query = (
        spark.readStream.format("kafka")
        .options(**spark_options(settings))
        .option("kafka.max.partition.fetch.bytes", str(topics.RECORD_LIMIT_BYTES))
        .option("subscribe", topics.events(name))
        .option("startingOffsets", "earliest")
        .option("failOnDataLoss", "true")
        .option("maxOffsetsPerTrigger", BATCH_LIMIT_ROWS)
        .load()
        .select("key", "value", "topic", "partition", "offset", "timestamp")
        .writeStream.foreachBatch(router)
        .queryName(f"predict {name}")
        .option("checkpointLocation", f"{settings.checkpoints}/stream/{name}")
        .start()
    )
    return router.query


def warm_up(spark: SparkSession) -> None:
    """Start every worker's Python process now, so that the first batches do not wait seconds for it."""
    slots = spark.sparkContext.defaultParallelism
    spark.range(0, slots, numPartitions=slots).mapInArrow(lambda batches: batches, "id long").collect()


def main() -> None:
    """Run until SIGTERM."""
    log_to_stderr()
    settings = load_settings()
    conf = {"spark.driver.memory": "512m", "spark.sql.execution.arrow.maxRecordsPerBatch": "2000"}
    spark = spark_session(settings, "stream", conf)
    warm_up(spark)
    streams = []
    for name in settings.applications:
        router = Router(settings, topics.events(name), scoring(settings, name))
        streams.append(Stream(name, partial(start_stream, spark, settings, name, router)))
    run_streams(settings, layer="speed", part="stream", streams=streams)
    spark.stop()


if __name__ == "__main__":
    main()
