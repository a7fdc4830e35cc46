"""Statements that MySQL answers, at once: as the account `reader`, with limits on time and rows."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from deeplambda.adapters import mysql
from deeplambda.errors import BadInput, NotReady
from serving_layer.query_service.messages import Answer, Column
from serving_layer.query_service.rows import take
from serving_layer.sql.guard import BadStatement, Checked, ForbiddenStatement

TIME_LIMIT_S = 10
AT_ONCE, _WAIT_S = 8, 1.0
"""Statements, of the service's threads: health, statistics and Hive's queries have the others."""

_turns = threading.BoundedSemaphore(AT_ONCE)
_CUT_OFF = {1317, 1969, 3024}  # interrupted; the time limits of MariaDB and of MySQL
_DENIED = {1044, 1045, 1142, 1143, 1227}
_TYPES: dict[Any, str] = {
    **{0: "decimal", 1: "tinyint", 2: "smallint", 3: "int", 4: "float", 5: "double", 6: "null", 7: "timestamp"},
    **{8: "bigint", 9: "mediumint", 10: "date", 11: "time", 12: "datetime", 13: "year", 16: "bit", 245: "json"},
    **{246: "decimal", 249: "text", 250: "text", 251: "text", 252: "text", 253: "varchar", 254: "char"},
}


class TimeLimitExceeded(BadInput):
    """A statement that ran for longer than statements may."""


def answer(engine: Engine, checked: Checked) -> Answer:
    """Run a checked statement. engine: of the account `reader`.

    Raises: BadStatement, ForbiddenStatement, TimeLimitExceeded, NotReady.
    """
    started = time.perf_counter()
    with _turn(), analyst_errors(), engine.connect() as connection:
        limit_time(connection)
        result: CursorResult[Any] = connection.execution_options(
            stream_results=True, no_parameters=True
        ).exec_driver_sql(checked.sql)
        described = result.cursor.description if result.cursor else ()
        rows, truncated = take(result, checked.row_cap)
        if truncated:
            connection.invalidate()  # closing it in order would read all that is left
    return Answer(
        columns=[Column(name=name, type=_TYPES.get(code, "other")) for name, code, *_ in described],
        rows=rows,
        row_count=len(rows),
        truncated=truncated,
        elapsed_ms=(time.perf_counter() - started) * 1e3,
        store="mysql",
    )


@contextmanager
def _turn() -> Iterator[None]:
    if not _turns.acquire(timeout=_WAIT_S):
        raise NotReady(f"{AT_ONCE} statements are at work on MySQL", "try again in a few seconds")
    try:
        yield
    finally:
        _turns.release()


def limit_time(connection: Connection) -> None:
    """Have the server end each SELECT of this connection after TIME_LIMIT_S."""
    connection.exec_driver_sql(
        f"SET SESSION max_statement_time = {TIME_LIMIT_S}"
        if getattr(connection.dialect, "is_mariadb", False)
        else f"SET SESSION max_execution_time = {TIME_LIMIT_S * 1000}"
    )


@contextmanager
def analyst_errors() -> Iterator[None]:
    """Translate what MySQL raises for a SELECT into BadStatement, ForbiddenStatement, TimeLimitExceeded or NotReady."""
    try:
        with mysql.mysql_errors():
            yield
    except PoolTimeoutError as exc:
        raise NotReady("all connections to MySQL are taken by other queries", "try again in a few seconds") from exc
    except DBAPIError as exc:
        code, message = (*(exc.orig.args if exc.orig else ()), None, None)[:2]
        if code in _CUT_OFF:
            raise TimeLimitExceeded(
                f"the statement ran for longer than {TIME_LIMIT_S} s and was ended",
                'narrow it down, or ask Hive: "store": "hive"',
            ) from exc
        if code in _DENIED:
            raise ForbiddenStatement(f"MySQL refuses: {message}", "read the tables that are for analysts") from exc
        raise BadStatement(f"MySQL refuses: {message or exc.orig}", "fix the statement") from exc
