"""Generated training objects on S3, and archived events made of the examples that came of them.

`python -m benchmarks.scale.generated APPLICATION` appends the events: Spark needs a process of its own.
"""

import io
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from deeplambda.adapters.lake import spark_session
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_schema
from deeplambda.config import load_settings
from deeplambda.loading import pack_application
from deeplambda.records.decoding import decode_event

APPLICATIONS = Path(__file__).with_name("applications")
FILE_ROWS = 500_000
PARTITION = 1_000
"""The first Kafka partition of the generated events: none of a topic's."""
_FOLDER_NUMBERS = 2_000
"""Whose images are in one folder of either label: for each thousand names the local stack's S3 reads the attributes of
all files of a folder, which S3 itself does not."""
_CLIENTS = 16
_HALF_A_DAY_MS = 12 * 3_600_000
_LEVELS = 128  # few values, so that Parquet packs a number into one byte: 20 M rows have to fit on this disk


def put_objects(application: str, rows: int) -> None:
    """Put `rows` rows under the raw prefix of one of our applications, several objects at a time."""
    store = ObjectStore(load_settings())
    store.client  # noqa: B018  # made once, before there are threads

    def put(make: Callable[[int, int], tuple[str, bytes]], number: int) -> None:
        name, content = make(number, rows)
        store.put(f"{application}/raw/{name}", content)

    with ThreadPoolExecutor(_CLIENTS) as executor:
        if application == "pictures":
            list(executor.map(partial(put, _picture), range(rows)))
        else:
            list(executor.map(partial(put, _table), range(math.ceil(rows / FILE_ROWS))))


def _table(number: int, rows: int) -> tuple[str, bytes]:
    first = number * FILE_ROWS
    count = min(FILE_ROWS, rows - first)
    numbers_NF = np.random.default_rng(number).integers(-_LEVELS // 2, _LEVELS // 2, (count, 8)) / 32
    columns = {name: numbers_NF[:, i] for i, name in enumerate("abcdefgh")}
    columns["id"] = np.char.add("row-", np.arange(first, first + count).astype(str))
    columns["class"] = np.where(numbers_NF.sum(axis=1) > 0, "above", "below")
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return f"rows/{number:05}.parquet", buffer.getvalue()


def _picture(number: int, rows: int) -> tuple[str, bytes]:
    bright = number % 2
    grey_HW = np.random.default_rng(number).integers(64 * bright, 192 + 64 * bright, (16, 16)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey_HW).save(buffer, "PNG", compress_level=1)
    folder = f"{('dark', 'bright')[bright]}/{number // _FOLDER_NUMBERS:03}"
    return f"pictures/{folder}/{number:07}.png", buffer.getvalue()


def archive_events(spark: SparkSession, application: str, run: str = "row", share: float = 1.0) -> int:
    """Append an event for each of a share of the examples, as the archive would have written it; how many.

    run: what sets the ids of these events apart from those of other calls.
    """
    settings = load_settings()
    schema = pack_application(_name(application), settings).load().event
    payload = payload_schema(schema)
    fields = [
        # without the line breaks that Spark puts in
        F.translate(F.base64(field.name), "\r\n", "").alias(field.name)
        if pa.types.is_binary(field.type)
        else F.col(field.name)
        for field in payload
    ]
    event_id = F.concat(F.lit(f"{run}-"), "event_id").alias("event_id")
    value = F.to_json(F.struct(event_id, F.lit("2026-01-02T03:04:05Z").alias("occurred_at"), *fields))
    events, at = f"lake.{application}.events", F.current_timestamp()
    first = spark.table(events).where(F.col("kafka_partition") >= PARTITION).agg(F.max("kafka_offset")).first()
    after = 0 if first is None or first[0] is None else first[0] + 1
    before = spark.table(events).count()
    # Each of Spark's partitions is one of Kafka's, so offsets need no order among them. Events come each millisecond.
    number = F.monotonically_increasing_id().bitwiseAND(2**33 - 1)
    spark.table(f"lake.{application}.examples").sample(share, seed=7).select(
        event_id,
        (F.spark_partition_id() + PARTITION).alias("kafka_partition"),
        (number + after).alias("kafka_offset"),
        F.timestamp_millis(F.unix_millis(at) - _HALF_A_DAY_MS + number).alias("kafka_timestamp"),
        value.cast("binary").alias("value"),
        at.alias("archived_at"),
    ).select(spark.table(events).columns).writeTo(events).append()
    made = spark.table(events).where(F.col("kafka_partition") >= PARTITION).first()
    decode_event(schema, bytes(made["value"]), limit_bytes=settings.event_limit_bytes)  # else they would be refused
    return spark.table(events).count() - before


def _name(application: str) -> str:
    ours = APPLICATIONS / application
    return str(ours) if ours.is_dir() else application


if __name__ == "__main__":
    session = spark_session(load_settings(), "benchmark")
    print(f"{archive_events(session, sys.argv[1]):,} events")
    session.stop()
