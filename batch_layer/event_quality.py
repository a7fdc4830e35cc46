"""The quality of a day's events, measured once the day has ended by the broker's time.

1. Spark decodes each archived event as the stream does, and keeps a row of flags: why it is refused, what is NULL.
2. One aggregate counts them; another holds the copies of each event id against each other; a third each partition's
   offsets against their number.
3. Delays are quantiles: event to broker, broker to archive, event to label, and broker to view by the rows that MySQL
   still has of the day.
Before all that, the day's data files are compared with what S3 lists. Where one is gone or cut off, that is the only
measure: the day cannot be read.
A day is measured once; what is measured is kept in `data_quality`, so the next call looks at the days since. Upkeep
does so once a day, and `deeplambda data quality`.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema
from sqlalchemy import select

from batch_layer import quality_rows
from batch_layer.counted_events import counted_events, counted_labels
from batch_layer.quality import broken, measure, share
from deeplambda.adapters import mysql
from deeplambda.adapters.lake import current_snapshot
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_schema
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.loading import PackedApplication
from deeplambda.records import topics
from deeplambda.records.decoding import Reason, RefusedEvent, check_key, decode_event
from deeplambda.records.lifecycle import QualityMeasure, QualityMeasured
from deeplambda.state.tables import REALTIME_PREDICTIONS

MOST_DAYS = 31
"""Days that one call measures; of a long archive that nobody has measured, the newest."""
_QUANTILES = (0.5, 0.99)
_VIEW_ROWS = 10_000
_MOMENT = pa.timestamp("us", tz="UTC")
_SEEN = [("taken", _MOMENT), ("archived", _MOMENT), ("occurred", _MOMENT), ("reason", pa.string())]

Batches = Iterator[pa.RecordBatch]


def measure_events(spark: SparkSession, settings: Settings, packed: PackedApplication) -> list[QualityMeasured]:
    """Measure the days that have ended and are not measured yet, the oldest first; what was measured, by day.

    A day has ended for the archive once it has events of a later one, or a whole day has passed: it may be behind.
    """
    table = f"lake.{packed.name}.data_quality"
    whole = spark.table(table).where("subject = 'events' AND measured_at >= date_add(day, 1)")
    done = whole.agg(F.max("day")).collect()[0][0]
    today = now().date()
    since = max(today - timedelta(days=MOST_DAYS), done + timedelta(days=1) if done else date.min)
    archived = {row.day for row in _files(spark, packed.name).select("day").distinct().collect()}
    yesterday = today - timedelta(days=1)
    days = {day for day in archived if since <= day < yesterday or (day == yesterday and today in archived)}
    return [measure_day(spark, settings, packed, day) for day in sorted(days)]


def measure_day(spark: SparkSession, settings: Settings, packed: PackedApplication, day: date) -> QualityMeasured:
    """Measure one day's events, whether it has ended or not, and keep the figures."""
    begin, end = _midnight(day), _midnight(day + timedelta(days=1))
    of_day = (F.col("kafka_timestamp") >= F.lit(begin)) & (F.col("kafka_timestamp") < F.lit(end))
    events = counted_events(spark, packed.name).where(of_day)
    measures = [_of_files(settings, _files(spark, packed.name).where(F.col("day") == F.lit(day)))]
    if not measures[0].value:
        measures += [
            *measures_of(spark, settings, packed, events, begin - topics.LABELS_BEFORE),
            *_of_offsets(spark.table(f"lake.{packed.name}.events").where(of_day)),
            *_of_view(settings, packed.name, begin, end),
        ]
    measured = QualityMeasured(
        application=packed.name,
        subject="events",
        day=day,
        snapshot=current_snapshot(spark, f"lake.{packed.name}.events"),
        measures=measures,
        broken=[reason for _, reason in broken(packed.load().expectations, measures)],
    )
    quality_rows.keep(spark, settings, measured)
    return measured


def measures_of(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    events: DataFrame,
    labels_since: datetime | None = None,
) -> list[QualityMeasure]:
    """What can be said of any archived events: refusals, ranges, NULLs, delays, copies, their labels.

    labels_since: labels of before are none of theirs, by the broker's time; None: all are looked through.
    """
    optional = [field.name for field in payload_schema(packed.load().event) if field.nullable]
    spark.sparkContext.addPyFile(str(packed.zip_file))
    schema = pa.schema([*_SEEN, *((f"null_{name}", pa.bool_()) for name in optional)])
    # The id as bytes: the archive keeps a key as it came, and one that is no UTF-8 could not be read as text.
    records = events.select(F.col("event_id").cast("binary").alias("key"), "value", "kafka_timestamp", "archived_at")
    seen = records.mapInArrow(_decoding(settings, packed, optional, schema), from_arrow_schema(schema))
    return [*_of_records(seen, optional), *_of_copies(events), *_of_labels(spark, packed.name, events, labels_since)]


def newest_measures(spark: SparkSession, application: str, days: int) -> list[tuple[str, QualityMeasure]]:
    """What was measured of the last days, the newest first, each with what it is of."""
    since = now().date() - timedelta(days=days)
    rows = spark.table(f"lake.{application}.data_quality").where(F.col("day") >= F.lit(since))
    order = (F.desc("day"), F.desc("measured_at"), "dimension", "measure", "field")
    return [
        (
            {"ingest": f"ingest {row.ingest}", "events": f"events of {row.day}"}.get(row.subject, row.ingest),
            QualityMeasure(
                dimension=row.dimension, measure=row.measure, field=row.field, value=row.value, rows=row["rows"]
            ),
        )
        for row in rows.orderBy(*order).toLocalIterator()
    ]


def _files(spark: SparkSession, application: str) -> DataFrame:
    """The data files of the archived events: of which day, where, and their bytes."""
    day = F.col("partition.kafka_timestamp_day").alias("day")
    return spark.table(f"lake.{application}.events.files").select(day, "file_path", "file_size_in_bytes")


def _of_files(settings: Settings, files: DataFrame) -> QualityMeasure:
    sizes = {urlsplit(row.file_path).path.removeprefix("/"): row.file_size_in_bytes for row in files.collect()}
    folders, store = {key.rpartition("/")[0] for key in sizes}, ObjectStore(settings)
    there = {found.key: found.bytes for folder in folders for found in store.list(f"{folder}/")}
    return share("unreadable", sum(there.get(key) != size for key, size in sizes.items()), len(sizes))


def _decoding(
    settings: Settings, packed: PackedApplication, optional: list[str], schema: pa.Schema
) -> Callable[[Batches], Batches]:
    def decode(batches: Batches) -> Batches:
        event_schema = packed.load().event
        for batch in batches:
            rows = []
            for given in batch.to_pylist():
                row = {"taken": given["kafka_timestamp"], "archived": given["archived_at"]}
                try:
                    event = decode_event(event_schema, given["value"], limit_bytes=settings.event_limit_bytes)
                    check_key(event, given["key"])
                except RefusedEvent as refusal:
                    row["reason"] = str(refusal.reason)
                else:
                    row["occurred"] = event.occurred_at
                    row |= {f"null_{name}": getattr(event, name) is None for name in optional}
                rows.append(row)
            yield pa.RecordBatch.from_pylist(rows, schema=schema)

    return decode


def _of_records(seen: DataFrame, optional: list[str]) -> list[QualityMeasure]:
    def delays(later: str, earlier: str) -> list[object]:
        seconds = F.col(later).cast("double") - F.col(earlier).cast("double")
        return [F.percentile_approx(seconds, list(_QUANTILES), 1_000), F.count(seconds)]

    reasons = [reason.value for reason in Reason]
    counts = [F.count_if(F.col("reason") == reason) for reason in reasons]
    nulls = [F.count_if(f"null_{name}") for name in optional]
    found = list(
        seen.agg(F.count("*"), *counts, *nulls, *delays("taken", "occurred"), *delays("archived", "taken")).collect()[0]
    )
    rows, found = found[0], found[1:]
    by_reason = dict(zip(reasons, found, strict=False))
    of_nulls = found[len(reasons) : len(reasons) + len(optional)]
    to_broker, decoded, to_archive, archived = found[-4:]
    refused = [share("refused", some, rows, reason) for reason, some in by_reason.items() if some]
    return [
        *(refused or [share("refused", 0, rows)]),
        share("out_of_range", by_reason[Reason.BAD_VALUE], rows),
        *(share("nulls", some, decoded, name) for name, some in zip(optional, of_nulls, strict=True)),
        *_delays("event to broker", to_broker, decoded),
        *_delays("broker to archive", to_archive, archived),
    ]


def _of_copies(events: DataFrame) -> list[QualityMeasure]:
    by_id = events.groupBy("event_id").agg(
        F.count("*").alias("copies"), (F.min(F.xxhash64("value")) != F.max(F.xxhash64("value"))).alias("differ")
    )
    rows, ids, conflicts = by_id.agg(F.sum("copies"), F.count("*"), F.count_if("differ")).collect()[0]
    return [share("duplicates", (rows or 0) - ids, rows or 0), share("conflicting_ids", conflicts, ids)]


def _of_offsets(events: DataFrame) -> list[QualityMeasure]:
    offset = F.col("kafka_offset")
    by_partition = events.groupBy("kafka_partition").agg(
        (F.max(offset) - F.min(offset) + 1).alias("expected"), F.count_distinct(offset).alias("there")
    )
    expected, there = by_partition.agg(F.sum("expected"), F.sum("there")).collect()[0]
    return [share("missing_offsets", (expected or 0) - (there or 0), expected or 0)]


def _of_labels(
    spark: SparkSession, application: str, events: DataFrame, since: datetime | None
) -> list[QualityMeasure]:
    """Of the labels that are known by now: an event's labels agree, and how late the first came."""
    first = events.groupBy("event_id").agg(F.min("kafka_timestamp").alias("taken"))
    labels = counted_labels(spark, application).where("label IS NOT NULL")
    if since is not None:  # else what is read grew with the years
        labels = labels.where(F.col("kafka_timestamp") >= F.lit(since))
    by_event = labels.groupBy("event_id").agg(
        (F.min("label") != F.max("label")).alias("differ"), F.min("kafka_timestamp").alias("labelled")
    )
    delay = F.col("labelled").cast("double") - F.col("taken").cast("double")
    ids, labelled, conflicts, delays = (
        first.join(by_event, "event_id", "left")
        .agg(
            F.count("*"),
            F.count("labelled"),
            F.count_if("differ"),
            F.percentile_approx(delay, list(_QUANTILES), 1_000),
        )
        .collect()[0]
    )
    return [
        share("unlabelled", ids - labelled, ids),
        share("label_conflicts", conflicts, labelled),
        *_delays("event to label", delays, labelled),
    ]


def _of_view(settings: Settings, application: str, begin: datetime, end: datetime) -> list[QualityMeasure]:
    """By the newest real-time rows; those of a day that the batch view has taken over are gone."""
    live = REALTIME_PREDICTIONS.c
    query = (
        select(live.received_at, live.stored_at)
        .where(live.application == application, live.received_at >= begin, live.received_at < end)
        .where(live.replayed.is_not(True))
        .order_by(live.predicted_at.desc())
        .limit(_VIEW_ROWS)
    )
    with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
        waited = [(row.stored_at - row.received_at).total_seconds() for row in connection.execute(query)]
    return _delays("broker to view", np.quantile(waited, _QUANTILES).tolist() if waited else None, len(waited))


def _delays(way: str, seconds: list[float] | None, rows: int) -> list[QualityMeasure]:
    return [
        measure("delay_s", delay, rows, f"{way}, p{of * 100:.0f}")
        for of, delay in zip(_QUANTILES, seconds or (), strict=False)
    ]


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
