"""PyHive 0.7's SQLAlchemy dialect, corrected for Spark's answers and for SQLAlchemy 2.

Spark's SHOW TABLES lists the schema in its first column, which PyHive takes for the table's name; Spark lists views by
a statement of their own; some of PyHive's results do not have the form that SQLAlchemy 2 requires; and of parameters it
drops offsets from UTC, and knows neither decimals nor NumPy's numbers.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
from pyhive import hive
from pyhive.sqlalchemy_hive import HiveDialect
from sqlalchemy import URL, Connection, text, types
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor, ReflectedColumn
from sqlalchemy.exc import DBAPIError, NoSuchTableError
from sqlalchemy.sql.compiler import GenericTypeCompiler
from thrift.Thrift import TException

_GONE = (TException, EOFError, OSError)
"""What Thrift raises when the connection is lost; not DB-API errors, so SQLAlchemy does not recognise them."""

_TYPES: dict[str, types.TypeEngine[Any]] = {
    "boolean": types.Boolean(),
    "tinyint": types.SmallInteger(),
    "smallint": types.SmallInteger(),
    "int": types.Integer(),
    "bigint": types.BigInteger(),
    "float": types.Float(),
    "double": types.Double(),
    "string": types.String(),
    "binary": types.LargeBinary(),
    "date": types.String(),  # as PyHive gives it: '2026-11-21'
    "timestamp": types.DateTime(),
    "timestamp_ntz": types.DateTime(),
}


class ParameterEscaper(hive.HiveParamEscaper):  # type: ignore[misc]
    """Parameters as Spark's literals; moments with an offset in UTC, which the gateway's sessions are in."""

    def escape_item(self, item: Any) -> Any:
        """One parameter. Raises: PyHive's ProgrammingError for what there is no literal of."""
        if isinstance(item, np.generic):
            item = item.item()
        if isinstance(item, datetime) and item.tzinfo:
            item = item.astimezone(UTC)
        if isinstance(item, Decimal) and item.is_finite():
            return f"{item:f}BD"
        return super().escape_item(item)


_ESCAPER = ParameterEscaper()


class GatewayTypes(GenericTypeCompiler):
    """Spark's names of types, for CAST."""

    def visit_INTEGER(self, type_: Any, **kw: Any) -> str:  # noqa: N802
        return "INT"

    def visit_VARCHAR(self, type_: Any, **kw: Any) -> str:  # noqa: N802
        return "STRING"

    visit_CHAR = visit_NCHAR = visit_NVARCHAR = visit_TEXT = visit_CLOB = visit_VARCHAR

    def visit_DATETIME(self, type_: Any, **kw: Any) -> str:  # noqa: N802
        return "TIMESTAMP"

    def visit_BLOB(self, type_: Any, **kw: Any) -> str:  # noqa: N802
        return "BINARY"


class GatewayDialect(HiveDialect):  # type: ignore[misc]
    """The dialect of `hive+deeplambda://account:password@host:port/schema`; SQLAlchemy calls its methods."""

    name = "hive"
    driver = "deeplambda"
    supports_statement_cache = False
    type_compiler_cls = GatewayTypes
    type_compiler = GatewayTypes

    @classmethod
    def import_dbapi(cls) -> Any:
        """PyHive, as a DB-API module."""
        return hive

    def create_connect_args(self, url: URL) -> tuple[list[Any], dict[str, Any]]:
        """PyHive's arguments; a password alone means auth=CUSTOM."""
        positional, named = super().create_connect_args(url)
        if url.password:
            named.setdefault("auth", "CUSTOM")
        return positional, named

    def do_execute(
        self,
        cursor: DBAPICursor,
        statement: str,
        parameters: Mapping[str, Any] | Sequence[Any],
        context: Any = None,
    ) -> None:
        """Run a statement whose parameters become part of its text: HiveServer2 takes none."""
        cursor.execute(statement % _ESCAPER.escape_args(parameters))

    def get_table_names(self, connection: Connection, schema: str | None = None, **kw: Any) -> list[str]:
        """Tables of a schema, which may be `catalog.schema`; without views."""
        views = set(self.get_view_names(connection, schema))
        return [name for name in self._names(connection, "SHOW TABLES", schema) if name not in views]

    def get_view_names(self, connection: Connection, schema: str | None = None, **kw: Any) -> list[str]:
        """Views of a schema. A catalog without views, such as Iceberg's, refuses SHOW VIEWS."""
        try:
            return self._names(connection, "SHOW VIEWS", schema)
        except DBAPIError:
            return []

    def _names(self, connection: Connection, show: str, schema: str | None) -> list[str]:
        within = f" IN {self._quoted(schema)}" if schema else ""
        return [
            row[1] for row in connection.execute(text(show + within)) if row[0]
        ]  # row[0] is empty for a temporary one

    def _quoted(self, name: str) -> str:
        return ".".join(self.identifier_preparer.quote_identifier(identifier) for identifier in name.split("."))

    def _get_table_columns(self, connection: Connection, table_name: str, schema: str | None) -> list[Any]:
        full = f"{schema}.{table_name}" if schema else table_name
        try:
            return list(connection.execute(text(f"DESCRIBE {self._quoted(full)}")))
        except DBAPIError as exc:
            if "TABLE_OR_VIEW_NOT_FOUND" in str(exc):
                raise NoSuchTableError(full) from exc
            raise

    def has_table(self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any) -> bool:
        """Whether a table or view of that name is there."""
        try:
            self._get_table_columns(connection, table_name, schema)
        except NoSuchTableError:
            return False
        return True

    def get_columns(
        self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any
    ) -> list[ReflectedColumn]:
        """Columns as DESCRIBE lists them; the rows after an empty one or one with '#' describe partitions."""
        columns: list[ReflectedColumn] = []
        for name, kind, comment in self._get_table_columns(connection, table_name, schema):
            if not name or name.startswith("#"):
                break
            columns.append(
                {"name": name, "type": _type_of(kind), "nullable": True, "default": None, "comment": comment or None}
            )
        return columns

    def get_pk_constraint(self, *_: Any, **kw: Any) -> dict[str, Any]:
        """No primary key: tables have none."""
        return {"constrained_columns": [], "name": None}

    def _none(self, *_: Any, **kw: Any) -> list[Any]:
        return []

    get_foreign_keys = get_indexes = get_unique_constraints = get_check_constraints = _none

    def get_table_comment(self, *_: Any, **kw: Any) -> dict[str, Any]:
        """No comment."""
        return {"text": None}

    def is_disconnect(self, e: Exception, connection: Any, cursor: Any) -> bool:
        """Whether `e` means a lost connection or a session that a restarted gateway no longer has."""
        return isinstance(e, _GONE) or "Invalid SessionHandle" in str(e)

    def do_ping(self, dbapi_connection: DBAPIConnection) -> bool:
        """Whether the session is still usable; the pool calls this before it hands out a connection."""
        try:
            with closing(dbapi_connection.cursor()) as cursor:
                cursor.execute("SELECT 1")
        except Exception as exc:
            if self.is_disconnect(exc, dbapi_connection, None):
                return False
            raise
        return True

    def do_terminate(self, dbapi_connection: DBAPIConnection) -> None:
        """Close a connection that has failed; the pool calls this, and the gateway may be gone."""
        with suppress(*_GONE):
            dbapi_connection.close()


def _type_of(described: str) -> types.TypeEngine[Any]:
    if decimal := re.fullmatch(r"decimal\((\d+),(\d+)\)", described):
        return types.Numeric(int(decimal[1]), int(decimal[2]))
    return _TYPES.get(described, types.String())  # arrays, maps and structs come as text
