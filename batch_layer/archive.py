"""Archive: events and labels from Kafka into the master data set, every byte as it came.

`python -m batch_layer.archive` runs one Spark stream for each topic. An append is exactly-once: Iceberg keeps the
stream's batch number with each commit. A stream without a checkpoint begins where its table ends, so a lost checkpoint
neither doubles nor loses a row.
"""

import json
import logging
import signal
import threading

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from deeplambda import topics
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.lake import create_tables, spark_session
from deeplambda.config import Settings, load_settings
from deeplambda.loading import pack_application
from deeplambda.runtime_metrics import Meter
from deeplambda.stack.heartbeat import beat

TRIGGER_S = 5
_BEAT_S = 5
_LOG = logging.getLogger(__name__)


def start_archive(spark: SparkSession, settings: Settings, application: str) -> list[StreamingQuery]:
    """Start the streams of one application."""
    key = F.col("key").cast("string")
    label = F.from_json(F.col("value").cast("string"), "event_id STRING, label STRING")
    return [
        _append(spark, settings, topics.events(application), f"lake.{application}.events", {"event_id": key}, "value"),
        _append(
            spark,
            settings,
            topics.labels(application),
            f"lake.{application}.labels",
            {"event_id": F.coalesce(label["event_id"], key), "label": label["label"]},
        ),
    ]


def _append(
    spark: SparkSession, settings: Settings, topic: str, table: str, columns: dict[str, Column], *kept: str
) -> StreamingQuery:
    records = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
        .option("subscribe", topic)
        .option("startingOffsets", _where_table_ends(spark, settings, topic, table))
        .option("failOnDataLoss", "true")
        .option("maxOffsetsPerTrigger", 100_000)
        .load()
    )
    rows: DataFrame = records.select(
        *[column.alias(name) for name, column in columns.items()],
        F.col("partition").alias("kafka_partition"),
        F.col("offset").alias("kafka_offset"),
        F.col("timestamp").alias("kafka_timestamp"),
        *kept,
        F.current_timestamp().alias("archived_at"),
    )
    return (
        rows.writeStream.format("iceberg")
        .queryName(f"archive {topic}")
        .outputMode("append")
        .trigger(processingTime=f"{TRIGGER_S} seconds")
        .option("checkpointLocation", f"{settings.checkpoints}/archive/{topic}")
        .option("fanout-enabled", "true")
        .toTable(table)
    )


def _where_table_ends(spark: SparkSession, settings: Settings, topic: str, table: str) -> str:
    """Starting offsets that follow the table's rows; used only while there is no checkpoint."""
    ends = {
        str(row.kafka_partition): row.next
        for row in spark.table(table)
        .groupBy("kafka_partition")
        .agg((F.max("kafka_offset") + 1).alias("next"))
        .collect()
    }
    if not ends:
        return "earliest"
    earliest = -2
    return json.dumps({topic: {str(p): ends.get(str(p), earliest) for p in range(settings.kafka_partitions)}})


def main() -> None:
    """Run until SIGTERM; fails, to be restarted from the checkpoints, when a stream does."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings, stop = load_settings(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    spark = spark_session(settings, "archive", {"spark.driver.memory": "512m"})
    queries: dict[str, list[StreamingQuery]] = {}
    for name in settings.applications:
        create_tables(spark, pack_application(name, settings).load())
        queries[name] = start_archive(spark, settings, name)
    _LOG.info("archiving %s", ", ".join(query.name for started in queries.values() for query in started))
    with Publisher(settings) as publisher:
        meters = {name: Meter(publisher, layer="batch", part="archive", application=name) for name in queries}
        reported: dict[str, int] = {}
        while not stop.wait(_BEAT_S):
            for name, started in queries.items():
                for query in started:
                    if failure := query.exception():
                        raise failure
                    progress = query.lastProgress
                    if progress and progress["numInputRows"] and reported.get(query.name) != progress["batchId"]:
                        reported[query.name] = progress["batchId"]
                        meters[name].measure("archived", progress["numInputRows"], "rows")
                        meters[name].measure("batch_duration", progress["durationMs"]["triggerExecution"] / 1e3, "s")
            publisher.flush()
            beat(settings, "archive", streams=sum(len(started) for started in queries.values()))
    for query in [query for started in queries.values() for query in started]:
        query.stop()
    spark.stop()


if __name__ == "__main__":
    main()
