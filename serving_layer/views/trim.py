"""Delete real-time rows that the batch view has absorbed, once no running query can need them.

A query that was planned before the horizon moved still reads the rows between the old horizon and the new one. The Hive
gateway ends every query after 110 s, so the rows before a horizon are deleted once the move to it is GRACE old.
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
"""As long as the topic `deeplambda.metrics` keeps them."""

_CHUNK_ROWS = 2_000
_PAUSE_S = 5.0
_ABSORBED = text(
    "DELETE FROM realtime_predictions "
    "WHERE application = :application AND kafka_partition = :partition AND kafka_offset < :offset LIMIT :rows"
)
_OLD_METRICS = text("DELETE FROM metrics WHERE at < :before LIMIT :rows")


class Trimmer:
    """Deletes the absorbed rows of one application.

    MySQL holds only the newest horizon. If it moves more often than GRACE, it is never old enough; so the earlier ones
    are kept here, and rows are deleted up to the newest of them that is.
    """

    def __init__(self, engine: Engine, application: str) -> None:
        self._engine, self._application = engine, application
        self._seen: dict[datetime, Horizon] = {}

    def trim(self, at: datetime) -> int:
        """Delete the rows before the newest horizon that is GRACE old at `at`; returns how many. Raises: NotReady."""
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
    """Run a `DELETE … LIMIT :rows` until no row is left; in short transactions, so that no writer waits long."""
    deleted = 0
    while True:
        with mysql.mysql_errors(), engine.begin() as connection:
            rows = connection.execute(statement, values | {"rows": _CHUNK_ROWS}).rowcount
        deleted += rows
        if rows < _CHUNK_ROWS:
            return deleted


def run(settings: Settings, status: LoopStatus, stop: threading.Event) -> None:
    """Trim until told to stop. Raises: NotReady, after which `Loop` calls it again."""
    # without gap locks, so that new rows need not wait
    engine = mysql.engine(settings, "views").execution_options(isolation_level="READ COMMITTED")
    trimmers = [Trimmer(engine, application) for application in settings.applications]
    trimmed = 0
    while not stop.is_set():
        trimmed += sum(trimmer.trim(now()) for trimmer in trimmers)
        delete_in_chunks(engine, _OLD_METRICS, {"before": now() - METRICS_KEPT})
        status.working(trimmed=trimmed)
        stop.wait(_PAUSE_S)
