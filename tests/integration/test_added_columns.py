"""Stores that an earlier version of this platform made get the columns, buckets and settings added since; their rows
stay."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from sqlalchemy import Engine, insert, inspect, text

from deeplambda.adapters import mysql
from deeplambda.adapters.lake import bucketed_joins, create_tables, current_snapshot, lacking_columns
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.records.horizon import Horizon, all_predictions_sql
from deeplambda.records.predictions import VIEW_SCHEMA
from deeplambda.state.tables import QUERIES, REALTIME_PREDICTIONS, RECENT_PREDICTIONS, create_schema
from examples.digits.application import Digits
from serving_layer.hive_gateway.recent import recent_predictions_sql
from serving_layer.sql.guard import STATEMENT_LIMIT
from tests.integration.test_views import prediction, store

ADDED = {"value", "scores", "slices"}
LONG_AGO, LONG_AHEAD = datetime(2020, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)


@pytest.fixture
def root(stack: Settings) -> Iterator[Engine]:
    """On a database of the test's own, for others write to the stack's meanwhile."""
    name = f"old_{uuid4().hex[:8]}"
    with mysql.engine(stack, "root").begin() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    root = mysql.engine(stack.model_copy(update={"mysql_database": name}), "root")
    create_schema(root)
    yield root
    with root.begin() as connection:
        connection.execute(text(f"DROP DATABASE {name}"))


def data_files(stack: Settings, spark: SparkSession, table: str) -> list[pq.ParquetFile]:
    paths = [row.file_path for row in spark.sql(f"SELECT file_path FROM {table}.files").collect()]
    contents = [ObjectStore(stack).get(path.partition(f"{stack.s3_bucket}/")[2]) for path in paths]
    return [pq.ParquetFile(BytesIO(content)) for content in contents]


def test_mysql_tables_get_them_once(root: Engine) -> None:
    tables = [REALTIME_PREDICTIONS.name, RECENT_PREDICTIONS.name]
    with root.begin() as connection:
        for table in tables:
            connection.execute(text(f"ALTER TABLE {table} DROP COLUMN value, DROP COLUMN scores, DROP COLUMN slices"))
    create_schema(root)
    create_schema(root)
    with root.connect() as connection:
        for table in tables:
            found = {column["name"]: column["nullable"] for column in inspect(connection).get_columns(table)}
            assert {name: found.get(name) for name in ADDED} == dict.fromkeys(ADDED, True)


def test_texts_of_before_tell_case_and_accents_apart_from_then_on(root: Engine) -> None:
    """By the servers' own collations all emojis are one, too."""
    names = ["Cat", "cat", "año", "ano", "😀", "😡"]
    with root.begin() as connection:
        general = "VARCHAR(255) COLLATE utf8mb4_general_ci NOT NULL COMMENT 'of before'"
        connection.execute(text(f"ALTER TABLE realtime_predictions MODIFY prediction {general}"))
    for _ in range(2):
        create_schema(root)
    store(root, [prediction(f"event-{n}", n, prediction=name) for n, name in enumerate(names)])
    with root.connect() as connection:
        grouped = connection.execute(
            text("SELECT prediction, count(*) AS n FROM realtime_predictions GROUP BY prediction")
        )
        assert {row.prediction: row.n for row in grouped} == dict.fromkeys(names, 1)
        columns = {each["name"]: each for each in inspect(connection).get_columns("realtime_predictions")}
        assert not columns["prediction"]["nullable"]


def test_large_records_are_held_a_few_at_a_time_in_a_table_of_before_too(stack: Settings, spark: SparkSession) -> None:
    class Old(Digits):
        name = f"old_{uuid4().hex[:8]}"

    create_tables(spark, Old())
    table, records = f"lake.{Old.name}.events", 10
    names = ("row-group-size-bytes", "row-group-check-min-record-count")
    unset = ", ".join(f"'write.parquet.{name}'" for name in names)
    for each in ("predictions", "events"):
        spark.sql(f"ALTER TABLE lake.{Old.name}.{each} UNSET TBLPROPERTIES ({unset})")
    create_tables(spark, Old())

    def large(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for n in batch["id"].to_pylist():
                yield pa.RecordBatch.from_pydict({"kafka_offset": [n], "value": [os.urandom(8 * 2**20)]})

    rows = spark.range(0, records, 1, 1).mapInArrow(large, "kafka_offset BIGINT, value BINARY")
    rows.createOrReplaceTempView("large")
    columns = "kafka_offset, value, archived_at"
    spark.sql(f"INSERT INTO {table} ({columns}) SELECT kafka_offset, value, current_timestamp() FROM large")
    written = [file.metadata for file in data_files(stack, spark, table)]
    assert sum(file.num_rows for file in written) == records
    assert max(file.num_rows / file.num_row_groups for file in written) <= 4, "of 8 MiB, in a row group of 32 MiB"


def test_a_batch_view_of_before_is_read_without_them_until_it_is_made_anew(spark: SparkSession) -> None:
    class Old(Digits):
        name = f"old_{uuid4().hex[:8]}"

    table = f"lake.{Old.name}.predictions"
    create_tables(spark, Old())
    spark.sql(f"ALTER TABLE {table} DROP COLUMNS value, scores, slices")
    spark.sql(f"ALTER TABLE {table} DROP PARTITION FIELD bucket(8, event_id)")
    at = "TIMESTAMP '2026-01-01'"
    spark.sql(f"INSERT INTO {table} VALUES ('a', 0, 1, {at}, {at}, 1, '7', 0.9D)")
    before = Horizon(snapshot=current_snapshot(spark, table), offsets={0: 2})

    create_tables(spark, Old())
    create_tables(spark, Old())
    assert spark.table(table).columns == VIEW_SCHEMA.names
    lacking = lacking_columns(spark, Old.name, before)
    assert lacking == ADDED

    texts = ("event_id", "prediction", "scores", "slices", "application")
    none = ", ".join(f"CAST(NULL AS STRING) AS {name}" for name in texts)
    spark.sql(
        f"SELECT {none}, 0 AS kafka_partition, 0L AS kafka_offset, current_timestamp() AS occurred_at, "
        "current_timestamp() AS predicted_at, 1 AS model_version, 0D AS confidence, 0D AS value WHERE FALSE"
    ).createOrReplaceTempView("live_rows")
    union = spark.sql(all_predictions_sql(Old.name, before, "live_rows", lacking)).collect()
    assert [(row.event_id, row.value, row.scores, row.view) for row in union] == [("a", None, None, "batch")]
    recent = recent_predictions_sql(Old.name, before, LONG_AGO, LONG_AHEAD, lacking)
    assert recent is not None
    assert [(row.event_id, row.value, row.scores) for row in spark.sql(recent).collect()] == [("a", None, None)]

    spark.sql(f"INSERT OVERWRITE {table} SELECT * FROM {table}")
    assert spark.sql(f"SELECT partition FROM {table}.partitions").count() == 1, "it lies in a bucket"
    after = Horizon(snapshot=current_snapshot(spark, table), offsets={0: 2})
    assert lacking_columns(spark, Old.name, after) == frozenset()
    assert spark.sql(all_predictions_sql(Old.name, after, "live_rows")).count() == 1
    spark.sql(f"DROP TABLE {table}")


def test_a_batch_view_is_written_in_the_order_of_time_so_that_the_newest_are_in_few_files(
    stack: Settings, spark: SparkSession
) -> None:
    class Old(Digits):
        name = f"old_{uuid4().hex[:8]}"

    table = f"lake.{Old.name}.predictions"
    create_tables(spark, Old())
    spark.sql(f"ALTER TABLE {table} WRITE UNORDERED")
    create_tables(spark, Old())
    spark.sql(
        f"INSERT INTO {table} (event_id, kafka_partition, kafka_offset, occurred_at, predicted_at, model_version, "
        "prediction, confidence) SELECT concat('event-', id), 0, id, timestamp_seconds(id * 7919 % 1000), "
        "current_timestamp(), 1, '7', 0D FROM range(1000)"
    )
    times = [file.read(["occurred_at"])["occurred_at"].to_pylist() for file in data_files(stack, spark, table)]
    assert sum(map(len, times)) == 1_000
    assert times == [sorted(each) for each in times]
    spark.sql(f"DROP TABLE {table}")


def test_realtime_rows_are_brought_to_the_buckets_of_the_batch_view_which_stay_where_they_are(
    spark: SparkSession,
) -> None:
    class New(Digits):
        name = f"new_{uuid4().hex[:8]}"

    table = f"lake.{New.name}.predictions"
    create_tables(spark, New())
    rows = (
        "concat('event-', id) AS event_id, 0 AS kafka_partition, id AS kafka_offset, "
        "current_timestamp() AS occurred_at, current_timestamp() AS predicted_at, "
        "1 AS model_version, '7' AS prediction, 0D AS confidence, 0D AS value, '' AS scores, '' AS slices"
    )
    spark.sql(f"INSERT INTO {table} SELECT {rows} FROM range(200)")
    spark.sql(f"SELECT {rows}, '{New.name}' AS application FROM range(150, 250)").createOrReplaceTempView("live_rows")
    horizon = Horizon(snapshot=current_snapshot(spark, table), offsets={0: 190})
    spark.conf.set("spark.sql.autoBroadcastJoinThreshold", "-1")  # as if the batch view were large
    try:
        with bucketed_joins(spark):
            union = spark.sql(all_predictions_sql(New.name, horizon, "live_rows"))
            assert sorted(row.kafka_offset for row in union.collect()) == list(range(250))
            plan = union._jdf.queryExecution().executedPlan().toString()
    finally:
        spark.conf.unset("spark.sql.autoBroadcastJoinThreshold")
    assert "keygroupedpartitioning" in plan
    assert "hashpartitioning" not in plan
    spark.sql(f"DROP TABLE {table}")


def test_the_text_of_a_query_gets_room_for_any_that_may_be_asked(root: Engine) -> None:
    with root.begin() as connection:
        connection.execute(text(f"ALTER TABLE {QUERIES.name} MODIFY statement TEXT NOT NULL, MODIFY error TEXT"))
    create_schema(root)
    with root.begin() as connection:
        asked = {"id": "1", "statement": "😀" * STATEMENT_LIMIT, "error": "😀" * STATEMENT_LIMIT}
        connection.execute(insert(QUERIES).values(store="hive", status="failed", submitted_at=LONG_AGO, **asked))
