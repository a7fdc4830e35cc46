"""Archive: events and labels from Kafka into the master data set, every byte as it came.

`python -m batch_layer.archive` runs one Spark stream for each topic. An append is exactly-once: Iceberg keeps the
stream's batch number with each commit. A stream without a checkpoint begins where its table ends, so a lost checkpoint
neither doubles nor loses a row. Beside the streams, upkeep tidies what their many commits leave, and
the monitor watches for drift, and experiments with candidates are followed.
"""

from functools import partial

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from batch_layer.experiments import follow
from batch_layer.monitor import watch
from batch_layer.upkeep import keep_up
from deeplambda.adapters.lake import create_tables
from deeplambda.config import Settings, load_settings
from deeplambda.loading import pack_application
from deeplambda.records import topics
from deeplambda.records.expiry import Reader
from deeplambda.service.checkpoints import Finished, starting_offsets
from deeplambda.service.logs import log_to_stderr
from deeplambda.service.stream_session import event_stream, slots, stream_session
from deeplambda.service.streams import Stream, run_streams

TRIGGER_S = 5
LAST_OFFSETS = 1_000_000
"""Of some batches, as large as they may be: partitions that are not quiet have their last record among them."""


def archive_streams(spark: SparkSession, settings: Settings, application: str) -> list[Stream]:
    """The streams of one application, not yet started."""
    key = F.col("key").cast("string")
    label = F.from_json(F.col("value").cast("string"), "event_id STRING, label STRING")
    events = {"event_id": key, "value": F.col("value")}
    labels = {"event_id": F.coalesce(label["event_id"], key), "label": label["label"]}
    return [
        Stream(
            application,
            topics.events(application),
            partial(_start, spark, settings, application, topics.events(application), "events", events),
        ),
        Stream(
            application,
            topics.labels(application),
            partial(_start, spark, settings, application, topics.labels(application), "labels", labels),
        ),
    ]


def _start(
    spark: SparkSession, settings: Settings, application: str, topic: str, table: str, columns: dict[str, Column]
) -> StreamingQuery:
    """Make the table where it is missing, for which the application's code is loaded, and start or resume."""
    name = f"lake.{application}.{table}"
    if not spark.catalog.tableExists(name):  # tables that are there are served whatever the code is like
        create_tables(spark, pack_application(application, settings).load())
    return _append(spark, settings, Reader(application, "archive", topic), name, columns)


def _append(
    spark: SparkSession, settings: Settings, reader: Reader, table: str, columns: dict[str, Column]
) -> StreamingQuery:
    checkpoint = f"{settings.checkpoints}/archive/{reader.topic}"
    starts = starting_offsets(spark, settings, reader, checkpoint, stored=partial(_stored, spark, table))
    records = event_stream(spark, settings, reader.topic, starts, maxOffsetsPerTrigger=100_000)
    rows = records.select(
        *[column.alias(name) for name, column in columns.items()],
        F.col("partition").alias("kafka_partition"),
        F.col("offset").alias("kafka_offset"),
        F.col("timestamp").alias("kafka_timestamp"),
        F.current_timestamp().alias("archived_at"),
    ).select(spark.table(table).columns)
    return (
        rows.coalesce(slots(spark))  # each of Kafka's partitions would be a task, and a file of labels
        .writeStream.format("iceberg")
        .queryName(f"archive {reader.topic}")
        .outputMode("append")
        .trigger(processingTime=f"{TRIGGER_S} seconds")
        .option("checkpointLocation", checkpoint)
        .option("fanout-enabled", "true")
        .toTable(table)
    )


def _stored(spark: SparkSession, table: str, finished: Finished | None) -> dict[int, int]:
    """By partition, the offset after the last that the table holds; nothing where it ends with `finished`.

    The table is ahead of a checkpoint that is older than its last commit, and of one whose last batch was committed but
    not finished. Iceberg keeps with each commit which stream's it was, and which batch.
    """
    query, batch = (f"summary['spark.sql.streaming.{name}']" for name in ("queryId", "epochId"))
    newest = spark.sql(
        f"SELECT {query} AS query, CAST({batch} AS BIGINT) AS batch FROM {table}.snapshots WHERE {query} IS NOT NULL "
        "ORDER BY committed_at DESC LIMIT 1"
    ).first()
    if finished and newest and newest.query == finished.query and newest.batch <= finished.batch:
        return {}
    return where_table_ends(spark, table)


def where_table_ends(spark: SparkSession, table: str) -> dict[int, int]:
    """By partition, the offset after the last that the table holds.

    Iceberg's bounds of files say which of them have the last offsets, and those are read: of most partitions they have
    the last record. Of the others all files are read that may have records of them.
    """
    bounds = F.min("kafka_partition"), F.max("kafka_partition"), F.max("kafka_offset")
    first, last, newest = spark.table(table).agg(*bounds).collect()[0]  # unfiltered, so no file is read for it
    if newest is None:
        return {}
    ends = _ends(spark.table(table).where(F.col("kafka_offset") > newest - LAST_OFFSETS))
    if behind := set(range(first, last + 1)) - ends.keys():
        ends |= _ends(spark.table(table).where(F.col("kafka_partition").isin(sorted(behind))))
    return ends


def _ends(rows: DataFrame) -> dict[int, int]:
    ends = rows.groupBy("kafka_partition").agg((F.max("kafka_offset") + 1).alias("end"))
    return {row.kafka_partition: row.end for row in ends.collect()}


def main() -> None:
    """Run until SIGTERM."""
    log_to_stderr()
    settings = load_settings()
    spark = stream_session(settings, "archive", {"spark.driver.memory": "512m"})
    streams = [stream for name in settings.applications for stream in archive_streams(spark, settings, name)]
    beside = {"drift": partial(watch, settings), "experiments": partial(follow, settings)}
    if settings.maintain_every_s:
        beside["upkeep"] = partial(keep_up, spark, settings)
    run_streams(spark, settings, layer="batch", part="archive", streams=streams, beside=beside)
    spark.stop()


if __name__ == "__main__":
    main()
