"""Real-time rows that the batch view has absorbed are deleted, once no query can need them any more.

A query that began before the horizon moved still reads the old cut; the Hive gateway ends every query after 110 s. So
rows before a horizon go only when that horizon has been the visible one, or has been followed by another, for GRACE_S.
"""

import threading
from datetime import datetime, timedelta

from sqlalchemy import Engine, TextClause, select, text

from deeplambda.adapters import mysql
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.records.horizon import Horizon
from deeplambda.service.loops import LoopStatus
from deeplambda.state.horizon_store import read_horizon
from deeplambda.state.tables import HORIZONS

GRACE = timedelta(seconds=300)
METRICS_KEPT = timedelta(days=7)
"""As long as their topic keeps them."""

_CHUNK_ROWS = 2_000
_PAUSE_S = 5.0
_ABSORBED = text(
    "DELETE FROM realtime_predictions "
    "WHERE application = :application AND kafka_partition = :partition AND kafka_offset < :offset LIMIT :rows"
)
_OLD_METRICS = text("DELETE FROM metrics WHERE at < :before LIMIT :rows")


class Trimmer:
    """Remembers each horizon that it has seen, for one that moves often would else never be old enough."""

    def __init__(self, engine: Engine, application: str) -> None:
        self._engine, self._application = engine, application
        self._seen: dict[datetime, Horizon] = {}

    def trim(self, at: datetime) -> int:
        """Delete what the newest horizon that is old enough at `at` has absorbed; returns rows. Raises: NotReady."""
        with mysql.mysql_errors(), self._engine.connect() as connection:
            horizon = read_horizon(connection, self._application)
            moved_at = connection.scalar(select(HORIZONS.c.moved_at).where(HORIZONS.c.application == self._application))
        if moved_at is not None:
            self._seen[moved_at] = horizon
        due = max((seen for seen in self._seen if seen + GRACE <= at), default=None)
        if due is None:
            return 0
        self._seen = {seen: kept for seen, kept in self._seen.items() if seen >= due}
        return sum(
            delete_in_chunks(
                self._engine,
                _ABSORBED,
                {"application": self._application, "partition": partition, "offset": offset},
            )
            for partition, offset in self._seen[due].offsets.items()
        )


def delete_in_chunks(engine: Engine, statement: TextClause, values: dict[str, object]) -> int:
    """Run a DELETE … LIMIT :rows until nothing is left; a transaction for each chunk, so nobody waits long."""
    deleted = 0
    while True:
        with mysql.mysql_errors(), engine.begin() as connection:
            rows = connection.execute(statement, values | {"rows": _CHUNK_ROWS}).rowcount
        deleted += rows
        if rows < _CHUNK_ROWS:
            return deleted


def run(settings: Settings, status: LoopStatus, stop: threading.Event) -> None:
    """Trim until told to stop. Raises: NotReady; call it again."""
    # without gap locks, so that new rows need not wait
    engine = mysql.engine(settings, "views").execution_options(isolation_level="READ COMMITTED")
    trimmers = [Trimmer(engine, application) for application in settings.applications]
    trimmed = 0
    while not stop.is_set():
        trimmed += sum(trimmer.trim(now()) for trimmer in trimmers)
        delete_in_chunks(engine, _OLD_METRICS, {"before": now() - METRICS_KEPT})
        status.working(trimmed=trimmed)
        stop.wait(_PAUSE_S)
