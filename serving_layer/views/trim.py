"""Delete real-time rows that the batch view has absorbed, once no running query can need them.

A query that was planned before the union view showed a horizon still reads the rows before it. The Hive gateway records
in MySQL when the view began to show one, and ends every query after 110 s; so the rows before a horizon are deleted
once it has been shown for GRACE. A gateway that cannot replace the view keeps all of them. Only MySQL's clock counts.
"""

import threading
from datetime import timedelta

from sqlalchemy import Engine, and_, func, select

from deeplambda.adapters import mysql
from deeplambda.config import Settings
from deeplambda.service.loops import LoopStatus
from deeplambda.state.horizon_store import forget_shown, shown_horizon
from deeplambda.state.tables import METRICS, REALTIME_PREDICTIONS

GRACE = timedelta(seconds=300)
METRICS_KEPT = timedelta(days=7)
"""As long as the topic `deeplambda.metrics` keeps them."""

_PAUSE_S = 5.0


def trim(engine: Engine, application: str) -> int:
    """Delete the rows before the newest horizon that has been shown for GRACE; returns how many. Raises: NotReady."""
    live = REALTIME_PREDICTIONS.c
    first = select(live.kafka_partition, func.min(live.kafka_offset).label("offset")).group_by(live.kafka_partition)
    with mysql.mysql_errors(), engine.begin() as connection:
        forget_shown(connection, application, GRACE)
        horizon = shown_horizon(connection, application, GRACE)
        begins = connection.execute(first.where(live.application == application)).all() if horizon.offsets else []
    absorbed = (
        and_(
            live.application == application,
            live.kafka_partition == partition,
            live.kafka_offset < horizon.offsets[partition],
        )
        for partition, offset in begins
        if horizon.absorbed(partition, offset)
    )
    return sum(mysql.delete_in_chunks(engine, REALTIME_PREDICTIONS, rows) for rows in absorbed)


def run(settings: Settings, status: LoopStatus, stop: threading.Event) -> None:
    """Trim until told to stop. Raises: NotReady, after which `Loop` calls it again."""
    engine, trimmed = mysql.engine(settings, "views"), 0
    while not stop.is_set():
        trimmed += sum(trim(engine, application) for application in settings.applications)
        mysql.delete_in_chunks(engine, METRICS, METRICS.c.at < mysql.ago(METRICS_KEPT))
        status.working(trimmed=trimmed)
        stop.wait(_PAUSE_S)
