"""The newest of what the lake says of an event id, for a row may be corrected and every fact stays.

A row that corrects an earlier one of its id has that one's `ingested_at` in `corrects`, and a later one of its own.
"""

from collections.abc import Iterable, Iterator

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from deeplambda.adapters.lake import read_snapshot

SENT_TO_ALL = 200_000
"""Rows of an id and a time, at most, that are sent to every executor instead of dealing out the rows beside them."""


def newest_examples(spark: SparkSession, application: str, snapshot: int | None = None) -> DataFrame:
    """The examples of a snapshot (default: the newest), each event id once.

    Without corrections nothing is compared: Iceberg knows which data files have any, and reads no other.
    """
    table = f"lake.{application}.examples"
    rows = spark.table(table) if snapshot is None else read_snapshot(spark, table, snapshot)
    if "corrects" not in rows.columns:  # a snapshot from before corrections were kept
        return rows
    corrected = rows.where("corrects IS NOT NULL").select("event_id", F.col("corrects").alias("ingested_at"))
    if not (count := corrected.count()):
        return rows
    few = F.broadcast(corrected) if count <= SENT_TO_ALL else corrected
    return rows.join(few, ["event_id", "ingested_at"], "left_anti").select(rows.columns)


def content_hash(fields: Iterable[T.StructField]) -> Column:
    """64 bits that follow from a row's columns `fields`, read as the types that are given here.

    What is NULL counts for nothing, so a row is the same before and after the event gets a further field.
    """
    return F.xxhash64(
        *(part for field in fields for part in _parts(F.col(f"`{field.name}`"), field.dataType, field.name))
    )


def _parts(value: Column, kind: T.DataType, name: str) -> Iterator[Column]:
    if isinstance(kind, T.StructType):  # by name, for an added field has another place in the lake than in the event
        yield F.when(value.isNotNull(), F.lit(name))
        for field in kind:
            yield from _parts(value.getField(field.name), field.dataType, f"{name}.{field.name}")
        return
    value = value.cast(kind)
    if isinstance(kind, (T.ArrayType, T.MapType)):  # the hash of a list passes over what is NULL in it, a map has none
        value = F.to_json(value, {"timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS"})
    yield F.when(value.isNotNull(), F.struct(F.lit(name), value))
