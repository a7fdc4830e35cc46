"""Model data and quality metrics in Hive: one row for each version in `models`, its figures in `model_metrics`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import SparkSession

from deeplambda.adapters.lake import create_tables
from deeplambda.application import Application


def append_model_rows(
    spark: SparkSession,
    application: Application,
    model: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
) -> None:
    """Append what is not there yet of a version's rows. model, metrics: dicts with the tables' columns."""
    create_tables(spark, application)
    for table, rows in (("model_metrics", metrics), ("models", [model])):
        name = f"lake.{application.name}.{table}"
        there = spark.table(name)
        if there.where(there.version == model["version"]).isEmpty():
            columns = there.columns
            values = [[row[column] for column in columns] for row in rows]
            spark.createDataFrame(values, schema=there.schema).coalesce(1).writeTo(name).append()
