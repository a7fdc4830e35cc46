"""MySQL, by SQLAlchemy Core and PyMySQL: the tables of recent data and of control state."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

from pymysql.err import MySQLError
from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Column,
    Connection,
    Dialect,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    text,
)
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT
from sqlalchemy.exc import DBAPIError

from deeplambda.config import Settings, port_of
from deeplambda.errors import ConfigurationError, Conflict, NotReady

Account = Literal["root", "platform", "views", "analyst"]


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


SCHEMA = MetaData()
_NAME = String(64, collation="utf8mb4_bin")
_EVENT_ID = String(128, collation="utf8mb4_bin")


def _prediction_columns() -> list[Column[Any]]:
    return [
        Column("application", _NAME, primary_key=True),
        Column("event_id", _EVENT_ID, primary_key=True),
        Column("kafka_partition", Integer, nullable=False),
        Column("kafka_offset", BigInteger, nullable=False),
        Column("occurred_at", UtcDateTime, nullable=False),
        Column("predicted_at", UtcDateTime, nullable=False),
        Column("model_version", Integer, nullable=False),
        Column("prediction", String(255), nullable=False),
        Column("confidence", Double),
    ]


REALTIME_PREDICTIONS = Table(
    "realtime_predictions",
    SCHEMA,
    *_prediction_columns(),
    Column("received_at", UtcDateTime, nullable=False, comment="the broker's time stamp of the event"),
    Column("stored_at", UtcDateTime, nullable=False),
    Index("realtime_by_position", "application", "kafka_partition", "kafka_offset"),
    Index("realtime_by_time", "application", "predicted_at"),
)
RECENT_PREDICTIONS = Table(
    "recent_predictions",
    SCHEMA,
    *_prediction_columns(),
    Column("label", String(255), comment="ground truth, where it has arrived"),
    Index("recent_by_time", "application", "occurred_at"),
)
RECENT_MODEL_METRICS = Table(
    "recent_model_metrics",
    SCHEMA,
    Column("application", _NAME, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("split", String(32), primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("value", Double, nullable=False),
    Column("recorded_at", UtcDateTime, nullable=False),
)
MODEL_VERSIONS = Table(
    "model_versions",
    SCHEMA,
    Column("application", _NAME, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("run", String(64), nullable=False),
    Column("published_at", UtcDateTime, nullable=False),
    Column("weights_sha256", String(64), nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("card", JSON, nullable=False),
    Index("one_version_per_run", "application", "run", unique=True),
)
PROMOTIONS = Table(
    "promotions",
    SCHEMA,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("application", _NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("previous", Integer),
    Column("kind", String(16), nullable=False, comment="promoted or rolled_back"),
    Column("at", UtcDateTime, nullable=False),
    Index("promotions_by_application", "application", "id"),
)
HORIZONS = Table(
    "horizons",
    SCHEMA,
    Column("application", _NAME, primary_key=True),
    Column("snapshot", BigInteger, nullable=False, comment="of lake.<application>.predictions"),
    Column("events_snapshot", BigInteger, nullable=False, comment="of lake.<application>.events"),
    Column("model_version", Integer, nullable=False),
    Column("offsets", JSON, nullable=False, comment="by partition, the first offset not absorbed"),
    Column("moved_at", UtcDateTime, nullable=False),
)
METRICS = Table(
    "metrics",
    SCHEMA,
    Column("kafka_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("application", _NAME),
    Column("layer", String(32), nullable=False),
    Column("part", String(32), nullable=False),
    Column("name", String(64), nullable=False),
    Column("value", Double, nullable=False),
    Column("unit", String(16), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index("metrics_by_time", "at"),
)
QUERIES = Table(
    "queries",
    SCHEMA,
    Column("id", String(36), primary_key=True),
    Column("statement", Text, nullable=False),
    Column("store", String(16), nullable=False),
    Column("status", String(16), nullable=False, comment="queued, running, done, failed or cancelled"),
    Column("submitted_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("result", LONGTEXT, comment="JSON: columns, rows, truncated"),
    Column("error", Text),
)
OUTBOX = Table(
    "outbox",
    SCHEMA,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("topic", String(249), nullable=False),
    Column("record_key", String(255), nullable=False),
    Column("value", LONGTEXT, nullable=False),
    Column("written_at", UtcDateTime, nullable=False),
    Column("published_at", UtcDateTime),
    Index("outbox_to_publish", "published_at", "id"),
)


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


def create_schema(root: Engine) -> None:
    """Create the tables that are missing."""
    with translated():
        SCHEMA.create_all(root)


_REFUSED = {1044, 1045}
_REFUSED_REMEDY = "the password given is not the account's: 'docker compose up' or 'deeplambda up' sets it again"
_PASSING = {0, 1040, 1053, 1205, 1213, 1927, 2002, 2003, 2006, 2013}
"""Errors of MySQL that another try may not meet: connections refused, full, lost or killed; locks and deadlocks."""


@contextmanager
def translated() -> Iterator[None]:
    """Connection errors as `NotReady`; deadlocks and lock waits too, for they pass. A refusal as ConfigurationError."""
    try:
        yield
    except (DBAPIError, MySQLError) as exc:  # PyMySQL's own where SQLAlchemy prepares a connection
        origin = exc.orig if isinstance(exc, DBAPIError) else exc
        code = origin.args[0] if origin and origin.args else None
        if code in _PASSING or (isinstance(exc, DBAPIError) and exc.connection_invalidated):
            raise NotReady(f"MySQL did not take the statement: {origin}", "see 'deeplambda status'") from exc
        if origin is not None and code in _REFUSED:
            raise ConfigurationError(f"MySQL: {origin.args[1]}", _REFUSED_REMEDY) from exc
        raise


@contextmanager
def named_lock(engine: Engine, name: str, timeout_s: int = 0) -> Iterator[Connection]:
    """Hold the database's advisory lock `name`; it is gone with the connection. Raises: Conflict when it is taken."""
    with translated(), engine.connect() as connection:
        if connection.scalar(text("SELECT GET_LOCK(:name, :timeout_s)"), {"name": name, "timeout_s": timeout_s}) != 1:
            raise Conflict(f"another run holds {name!r}", "wait until it ends, then try again")
        try:
            yield connection
        finally:
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": name})
