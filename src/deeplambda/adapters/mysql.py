"""MySQL, by SQLAlchemy Core and PyMySQL: engines, moments in UTC, advisory locks, errors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import blake2b
from typing import Any, Literal

from pymysql.err import MySQLError
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    Table,
    TextClause,
    TypeDecorator,
    create_engine,
    delete,
    text,
)
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.exc import DBAPIError

from deeplambda.config import Settings, port_of
from deeplambda.errors import ConfigurationError, Conflict, NotReady

Account = Literal["root", "platform", "views", "queries", "reader", "analyst"]


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware moment, kept as UTC to the microsecond."""

    impl = DATETIME
    cache_ok = True

    def __init__(self) -> None:
        super().__init__(fsp=6)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value else None


@cache
def engine(settings: Settings, account: Account) -> Engine:
    """A pooled engine for one of the platform's accounts; sessions are in UTC."""
    password = settings.analyst_password if account == "analyst" else getattr(settings, f"mysql_{account}_password")
    return create_engine(
        URL.create(
            "mysql+pymysql",
            account,
            password.get_secret_value(),
            settings.mysql_address.rpartition(":")[0],
            port_of(settings.mysql_address),
            settings.mysql_database,
            {"charset": "utf8mb4"},
        ),
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args={"connect_timeout": 5, "init_command": "SET time_zone = '+00:00'"},
    )


_log = logging.getLogger(__name__)
_CHUNK_ROWS = 2_000
_HELD_S = 31_536_000  # a year, the most that MySQL takes
_REFUSED = {1044, 1045}
_REFUSED_REMEDY = (
    "the password given is not the account's: 'deeplambda up', 'docker compose up' or the job 'provision' sets it again"
)
_RETRYABLE = {0, 1040, 1053, 1205, 1213, 1927, 2002, 2003, 2006, 2013}
"""MySQL's errors that a retry may avoid: connections refused, too many, lost or killed; lock waits and deadlocks."""


@contextmanager
def mysql_errors() -> Iterator[None]:
    """Connection errors, deadlocks and lock waits as `NotReady`; a refused login as `ConfigurationError`."""
    try:
        yield
    except (DBAPIError, MySQLError) as exc:  # PyMySQL's own while SQLAlchemy sets up a connection
        origin = exc.orig if isinstance(exc, DBAPIError) else exc
        code = origin.args[0] if origin and origin.args else None
        if code in _RETRYABLE or (isinstance(exc, DBAPIError) and exc.connection_invalidated):
            raise NotReady(f"MySQL did not take the statement: {origin}", "see 'deeplambda status'") from exc
        if origin is not None and code in _REFUSED:
            raise ConfigurationError(f"MySQL: {origin.args[1]}", _REFUSED_REMEDY) from exc
        raise


@contextmanager
def named_lock(engine: Engine, name: str, timeout_s: int = 0) -> Iterator[Connection]:
    """Hold the advisory lock `name` of the engine's account; it is gone with the connection.

    Raises: Conflict when it is taken.
    """
    with mysql_errors(), engine.connect() as connection:
        known = {"name": lock_name(connection, name)}
        connection.execute(text(f"SET SESSION wait_timeout = {_HELD_S}"))  # it is idle for as long as the run takes
        if connection.scalar(text("SELECT GET_LOCK(:name, :timeout_s)"), known | {"timeout_s": timeout_s}) != 1:
            raise Conflict(f"another run holds {name!r}", "wait until it ends, then try again")
        try:
            yield connection
        finally:
            try:
                connection.execute(text("SELECT RELEASE_LOCK(:name)"), known)
            except DBAPIError:  # it went with the connection; what was done is done
                _log.warning("the lock %s was lost meanwhile", name)


def lock_name(connection: Connection, name: str) -> str:
    """Under which the database knows an advisory lock: one that nobody guesses without the account's password, for an
    analyst may take any of the server's that he can name."""
    key = blake2b(str(connection.engine.url.password).encode()).digest()
    return blake2b(name.encode(), key=key, digest_size=20).hexdigest()


def ago(span: timedelta) -> TextClause:
    """So long before now, by the database's clock: a moment to compare a column with."""
    return text(f"UTC_TIMESTAMP(6) - INTERVAL {span.total_seconds():f} SECOND")


def delete_in_chunks(engine: Engine, table: Table, old: ColumnElement[bool]) -> int:
    """Delete the rows of which `old` is true, in short transactions, so that no writer waits long; how many.

    Raises: NotReady.
    """
    unhindering = engine.execution_options(isolation_level="READ COMMITTED")  # without locks on where new rows come
    statement, deleted = delete(table).where(old).with_dialect_options(mysql_limit=_CHUNK_ROWS), 0
    while True:
        with mysql_errors(), unhindering.begin() as connection:
            rows = connection.execute(statement).rowcount
        deleted += rows
        if rows < _CHUNK_ROWS:
            return deleted
