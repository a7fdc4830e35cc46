"""Model data in Hive: a row for each version in `models`, its figures in `model_metrics`, the gate's in `verdicts`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from sqlalchemy import Engine

from deeplambda.adapters.lake import create_tables
from deeplambda.adapters.mysql import mysql_errors
from deeplambda.application import Application
from deeplambda.records.verdict import Comparison, Verdict
from deeplambda.state import registry


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


def append_verdicts(spark: SparkSession, engine: Engine, application: str) -> int:
    """Append the registry's decisions that are not in `verdicts` yet; how many. A command decides without Spark, so
    whoever has a session next, the pipeline or upkeep, brings them there."""
    name = f"lake.{application}.verdicts"
    table = spark.table(name)
    number, rejected = F.substring_index("decision", "/", -1).cast("bigint"), F.col("kind") == "rejected"
    last = F.max(F.when(~rejected, number)), F.max(F.when(rejected, number))
    ((change, rejection),) = table.agg(*last).collect()
    with mysql_errors(), engine.connect() as connection:
        past = change or 0, rejection or 0  # whoever decides holds the champion, so none comes with a lower number
        new = [each._asdict() for each in registry.history(connection, application, past=past)]
    rows = [row for decision in new for row in verdict_rows(decision)]
    if rows:
        values = [[row.get(column) for column in table.columns] for row in rows]
        spark.createDataFrame(values, schema=table.schema).coalesce(1).writeTo(name).append()
    return len(new)


def verdict_rows(decision: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A decision of `registry.history` as rows of `verdicts`: one for each comparison, or one without any."""
    verdict = Verdict.model_validate(decision["verdict"]) if decision["verdict"] else Verdict(version=0)
    shared = {"decision": _key(decision), "figures": to_json(verdict.figures).decode() if verdict.figures else None}
    shared |= {name: decision[name] for name in ("kind", "version", "champion", "at", "who", "why", "reason")}
    compared: list[Comparison] = verdict.comparisons
    return [{**each.model_dump(), **shared} for each in compared] or [shared]


def _key(decision: Mapping[str, Any]) -> str:
    return f"{decision['kind']}/{decision['id']}"
