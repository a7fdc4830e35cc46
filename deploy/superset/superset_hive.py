"""What Superset and PyHive take for Hive is Spark: its SHOW names the schema first, and it rounds times its own way."""

from collections.abc import Iterable
from typing import Any

from pyhive.sqlalchemy_hive import HiveDialect
from sqlalchemy import text
from superset.db_engine_specs.hive import HiveEngineSpec
from superset.db_engine_specs.spark import SparkEngineSpec


def fix_dialect() -> None:
    """Replace what reads those answers, and how a moment is rounded to its minute, hour, …."""
    HiveDialect.get_table_names = _table_names
    HiveEngineSpec.get_view_names = classmethod(_view_names)
    HiveEngineSpec._time_grain_expressions = SparkEngineSpec._time_grain_expressions


def _table_names(dialect: Any, connection: Any, schema: str | None = None, **_: object) -> list[str]:
    return sorted(_names(connection.execute(text(_show("TABLES", schema)))))


def _view_names(_: type, database: Any, inspector: Any, schema: str | None) -> set[str]:
    with database.get_raw_connection(schema=schema) as connection:
        cursor = connection.cursor()
        cursor.execute(_show("VIEWS", schema))
        return set(_names(cursor.fetchall()))


def _show(kind: str, schema: str | None) -> str:
    return f"SHOW {kind} IN `{schema}`" if schema else f"SHOW {kind}"


def _names(rows: Iterable[Any]) -> list[str]:
    return [name for schema, name, *_ in rows if schema]  # a temporary one has no schema
