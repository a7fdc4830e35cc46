"""How an application is doing: its real-time view, and how good what the stream answered was."""

from datetime import timedelta

import numpy as np
from sqlalchemy import Connection, Engine, case, func, select, text

from deeplambda.clock import now
from deeplambda.state import registry
from deeplambda.state.horizon_store import read_horizon
from deeplambda.state.tables import HORIZONS, REALTIME_PREDICTIONS
from serving_layer.query_service.lag import waiting
from serving_layer.query_service.live_accuracy import live_accuracy
from serving_layer.query_service.messages import Live, LiveVersion, Statistics
from serving_layer.query_service.mysql_queries import analyst_errors, limit_time

_RATE_OVER = timedelta(minutes=1)
_NEWEST_ROWS, _DELAY_ROWS = 100_000, 1_000
"""Looked at: the view may have tens of millions, and whoever has the page open asks every few seconds."""


def statistics(engine: Engine, application: str) -> Statistics:
    """An application's statistics now. engine: of the account `reader`. Raises: NotReady."""
    with analyst_errors(), engine.connect() as connection:
        limit_time(connection)
        champion = registry.champion(connection, application)
        moved_at = connection.scalar(select(HORIZONS.c.moved_at).where(HORIZONS.c.application == application))
        accuracy, reports = live_accuracy(connection, application), waiting(connection, application)
        return Statistics(
            application=application,
            at=now(),
            champion=champion.version if champion else None,
            horizon=dict(read_horizon(connection, application).offsets),
            horizon_moved_at=moved_at,
            live=_live(connection, application),
            labelled=accuracy.versions,
            labelled_hours=accuracy.hours,
            labelled_classes=accuracy.classes,
            labelled_slices=accuracy.slices,
            waiting={part: report and report.rows for part, report in reports.items()},
            waiting_by_partition=reports["stream"].by_partition if reports["stream"] else {},
            behind=[part for part, report in reports.items() if report and report.behind],
        )


def _live(connection: Connection, application: str) -> Live:
    table = REALTIME_PREDICTIONS.c
    own, since = table.application == application, now() - _RATE_OVER
    newest = (
        select(table.model_version, table.confidence, table.predicted_at)
        .where(own)
        .order_by(table.predicted_at.desc())
        .limit(_NEWEST_ROWS)
        .subquery()
    )
    found = connection.execute(
        select(
            newest.c.model_version,
            func.count().label("rows"),
            func.sum(case((newest.c.predicted_at >= since, 1), else_=0)).label("lately"),
            func.avg(newest.c.confidence).label("confidence"),
            func.min(newest.c.predicted_at).label("first"),
            func.max(newest.c.predicted_at).label("last"),
        )
        .group_by(newest.c.model_version)
        .order_by(newest.c.model_version.desc())
    ).all()
    looked_at = sum(float(row.lately) for row in found)
    lately = connection.scalar(select(func.count()).where(own, table.predicted_at >= since)) if looked_at else 0
    times_more = (lately or 0) / looked_at if looked_at else 0.0  # than among those looked at, where a minute has more
    versions = [
        LiveVersion(
            model_version=row.model_version,
            rows=row.rows,
            rate_per_s=float(row.lately) * times_more / _RATE_OVER.total_seconds(),
            confidence_mean=row.confidence,
            first_predicted_at=row.first,
            last_predicted_at=row.last,
        )
        for row in found
    ]
    delays_ms = connection.scalars(
        select(text("TIMESTAMPDIFF(MICROSECOND, occurred_at, stored_at) / 1000"))
        .select_from(REALTIME_PREDICTIONS)
        .where(table.application == application, table.replayed.is_not(True))
        .order_by(table.predicted_at.desc())
        .limit(_DELAY_ROWS)
    ).all()
    p50, p99 = (
        (float(each) for each in np.percentile(np.array(delays_ms, float), [50, 99])) if delays_ms else (None,) * 2
    )
    return Live(
        rows=sum(version.rows for version in versions),
        rate_per_s=sum(version.rate_per_s for version in versions),
        event_to_row_p50_ms=p50,
        event_to_row_p99_ms=p99,
        versions=versions,
    )
