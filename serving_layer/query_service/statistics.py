"""How an application is doing: its real-time view, and how good predictions are whose labels are known.

Of classes and labels that is the accuracy: the share of predictions that equal their label, as text. Of numbers it is
the mean absolute error, over labels that are numbers.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Double, Engine, Row, case, cast, func, select, text

from deeplambda.clock import now
from deeplambda.state import registry
from deeplambda.state.horizon_store import read_horizon
from deeplambda.state.tables import HORIZONS, REALTIME_PREDICTIONS, RECENT_PREDICTIONS
from serving_layer.query_service.intervals import wilson_95
from serving_layer.query_service.lag import waiting
from serving_layer.query_service.messages import (
    LabelledClass,
    LabelledHour,
    LabelledSlice,
    LabelledVersion,
    Live,
    LiveVersion,
    Statistics,
)
from serving_layer.query_service.mysql_queries import analyst_errors, limit_time
from serving_layer.query_service.slices import Counts, by_slice

_RATE_OVER = timedelta(minutes=1)
_NEWEST_ROWS = 1_000
_GROUPS_LIMIT = 200
_NUMBER = "^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?$"


def statistics(engine: Engine, application: str) -> Statistics:
    """An application's statistics now. engine: of the account `analyst`. Raises: NotReady."""
    with analyst_errors(), engine.connect() as connection:
        limit_time(connection)
        champion = registry.champion(connection, application)
        moved_at = connection.scalar(select(HORIZONS.c.moved_at).where(HORIZONS.c.application == application))
        versions = [LabelledVersion(**_of(row)) for row in _labelled(connection, application)]
        reports = waiting(connection, application)
        newest = RECENT_PREDICTIONS.c.model_version == (versions[0].model_version if versions else None)
        return Statistics(
            application=application,
            at=now(),
            champion=champion.version if champion else None,
            horizon=dict(read_horizon(connection, application).offsets),
            horizon_moved_at=moved_at,
            live=_live(connection, application),
            labelled=versions,
            labelled_hours=[
                LabelledHour(hour=row.hour, **_of(row)) for row in _labelled(connection, application, _BY_HOUR)
            ],
            labelled_classes=[
                LabelledClass(label=row.label, **_of(row))
                for row in _labelled(connection, application, _BY_CLASS, condition=newest)
                if not row.numbers
            ],
            labelled_slices=[
                LabelledSlice(slice=name, **_figures(versions[0].model_version, counts))
                for name, counts in by_slice(_sliced(connection, application, newest))
            ],
            waiting={part: report and report.rows for part, report in reports.items()},
            waiting_by_partition=reports["stream"].by_partition if reports["stream"] else {},
            behind=[part for part, report in reports.items() if report and report.behind],
        )


def _live(connection: Connection, application: str) -> Live:
    table = REALTIME_PREDICTIONS.c
    lately = case((table.predicted_at >= now() - _RATE_OVER, 1), else_=0)
    found = connection.execute(
        select(
            table.model_version,
            func.count().label("rows"),
            func.sum(lately).label("lately"),
            func.avg(table.confidence).label("confidence"),
            func.min(table.predicted_at).label("first"),
            func.max(table.predicted_at).label("last"),
        )
        .where(table.application == application)
        .group_by(table.model_version)
        .order_by(table.model_version.desc())
    )
    versions = [
        LiveVersion(
            model_version=row.model_version,
            rows=row.rows,
            rate_per_s=float(row.lately) / _RATE_OVER.total_seconds(),
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
        .limit(_NEWEST_ROWS)
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


_BY_HOUR = func.date_format(RECENT_PREDICTIONS.c.occurred_at, "%Y-%m-%dT%H:00:00Z").label("hour")
_BY_CLASS = RECENT_PREDICTIONS.c.label


def _labelled(
    connection: Connection, application: str, *others: ColumnElement[Any], condition: ColumnElement[bool] | None = None
) -> list[Row[Any]]:
    """Counts by version, the newest first, and by `others`; without groups that have no label."""
    table = RECENT_PREDICTIONS.c
    query = (
        select(table.model_version, *others, *_counts())
        .where(table.application == application)
        .group_by("model_version", *(other.name for other in others))
        .having(func.count(table.label) > 0)
        .order_by(*(text(f"{column.name} DESC") for column in (table.model_version, *others)))
        .limit(_GROUPS_LIMIT)
    )
    return list(connection.execute(query if condition is None else query.where(condition)))


def _sliced(connection: Connection, application: str, of_version: ColumnElement[bool]) -> Iterator[tuple[str, Counts]]:
    """Counts by the declared slices' values."""
    table = RECENT_PREDICTIONS.c
    query = select(table.slices, *_counts()).where(
        table.application == application, table.slices.is_not(None), of_version
    )
    return ((row.slices, _read(row)) for row in connection.execute(query.group_by(table.slices)))


def _counts() -> list[ColumnElement[Any]]:
    """What `_read` reads."""
    table = RECENT_PREDICTIONS.c
    error = case((table.label.regexp_match(_NUMBER), func.abs(table.value - cast(table.label, Double))))
    return [
        func.count(table.label).label("labelled"),
        (func.count() - func.count(table.label)).label("unlabelled"),
        func.sum(case((table.label == table.prediction, 1), else_=0)).label("correct"),
        func.count(case((table.label.is_not(None), table.value))).label("numbers"),
        func.count(error).label("errors"),
        func.coalesce(func.sum(error), 0.0).label("error"),
    ]


def _read(row: Row[Any]) -> Counts:
    counts = {name: int(getattr(row, name)) for name in ("labelled", "unlabelled", "correct", "numbers", "errors")}
    return Counts(**counts, error=row.error)


def _of(row: Row[Any]) -> dict[str, Any]:
    return _figures(row.model_version, _read(row))


def _figures(version: int, counts: Counts) -> dict[str, Any]:
    """Of numbers the error, else the accuracy."""
    correct = None if counts.numbers else counts.correct
    return {
        "model_version": version,
        "rows": counts.labelled,
        "unlabelled": counts.unlabelled,
        "correct": correct,
        "accuracy": None if correct is None else correct / counts.labelled,
        "interval_95": None if correct is None else wilson_95(correct, counts.labelled),
        "mean_absolute_error": counts.error / counts.errors if counts.errors else None,
    }
