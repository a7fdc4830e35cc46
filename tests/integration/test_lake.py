"""The lake's sessions: several processes write its tables, and each sees what the others have written."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from pyspark.sql import SparkSession


@pytest.fixture
def table(spark: SparkSession) -> Iterator[str]:
    """A table that no other test has."""
    namespace = f"lake.seen_{uuid4().hex[:8]}"
    spark.sql(f"CREATE NAMESPACE {namespace}")
    spark.sql(f"CREATE TABLE {namespace}.numbers (number INT) USING iceberg")
    yield f"{namespace}.numbers"
    spark.sql(f"DROP TABLE {namespace}.numbers PURGE")
    spark.sql(f"DROP NAMESPACE {namespace}")


def test_a_session_sees_at_once_what_another_one_has_written(spark: SparkSession, table: str) -> None:
    other = spark.newSession()  # with a catalog of its own, as another process has
    for written in (1, 2):
        other.sql(f"INSERT INTO {table} VALUES ({written})")
        assert spark.table(table).count() == written
        assert spark.sql(f"SELECT * FROM {table}.snapshots").count() == written
