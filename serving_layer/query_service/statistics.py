"""How an application is doing: its real-time view, and how good what the stream answered was, where labels are known.

Of classes and labels that is the accuracy: the share of predictions that equal their label, as text. Of numbers it is
the mean absolute error.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    Integer,
    Row,
    case,
    func,
    null,
    select,
    text,
    union_all,
)

from deeplambda.clock import now
from deeplambda.state import registry
from deeplambda.state.horizon_store import read_horizon
from deeplambda.state.tables import HORIZONS, LIVE_ANSWERS, LIVE_ANSWERS_KEPT, REALTIME_PREDICTIONS
from serving_layer.query_service.intervals import mean_95, wilson_95
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


def statistics(engine: Engine, application: str) -> Statistics:
    """An application's statistics now. engine: of the account `analyst`. Raises: NotReady."""
    with analyst_errors(), engine.connect() as connection:
        limit_time(connection)
        champion = registry.champion(connection, application)
        moved_at = connection.scalar(select(HORIZONS.c.moved_at).where(HORIZONS.c.application == application))
        answers = _counted(connection, application)
        newest = max((row.model_version for row in answers if row.labelled), default=None)
        reports = waiting(connection, application)
        return Statistics(
            application=application,
            at=now(),
            champion=champion.version if champion else None,
            horizon=dict(read_horizon(connection, application).offsets),
            horizon_moved_at=moved_at,
            live=_live(connection, application),
            labelled=[
                LabelledVersion(**_figures(version, counts)) for (version,), counts in _summed(answers, "model_version")
            ],
            labelled_hours=[
                LabelledHour(hour=hour, **_figures(version, counts))
                for (version, hour), counts in _summed(answers, "model_version", "hour")
            ],
            labelled_classes=[
                LabelledClass(label=label, **_figures(version, counts))
                for (version, label), counts in _summed(
                    (row for row in answers if row.model_version == newest and row.truth is not None),
                    *("model_version", "truth"),
                )
            ],
            labelled_slices=[
                LabelledSlice(slice=name, **_figures(version, counts))
                for version, groups in groupby(_sliced(connection, application), attrgetter("model_version"))
                for name, counts in by_slice((row.slices, _read(row)) for row in groups)
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


def _answers(application: str, name: str) -> FromClause:
    """What the stream answered: with a label, or waiting for one in either table. name: a column beside the version."""
    live, kept = REALTIME_PREDICTIONS.c, LIVE_ANSWERS.c
    labelled = (kept.label, kept.correct, kept.error)
    waiting = (
        select(live.model_version, live[name], *(null().label(column.name) for column in labelled))
        .where(live.application == application, live.replayed.is_not(True))
        .where(~select(kept.event_id).where(kept.application == application, kept.event_id == live.event_id).exists())
        .order_by(live.predicted_at.desc())
        .limit(LIVE_ANSWERS_KEPT)
    )
    of_table = select(kept.model_version, kept[name], *labelled).where(kept.application == application)
    return union_all(of_table, select(waiting.subquery())).subquery("answers")


def _counted(connection: Connection, application: str) -> Sequence[Row[Any]]:
    """Counts by version, hour and, where it is no number, the truth."""
    answers = _answers(application, "occurred_at")
    hour = func.date_format(answers.c.occurred_at, "%Y-%m-%dT%H:00:00Z").label("hour")
    truth = case((answers.c.error.is_(None), answers.c.label)).label("truth")
    query = select(answers.c.model_version, hour, truth, *_counts(answers))
    return connection.execute(query.group_by("model_version", "hour", "truth")).all()


def _summed(groups: Iterable[Row[Any]], *names: str) -> list[tuple[tuple[Any, ...], Counts]]:
    """Counts by some columns, the highest first; without groups that have no label."""
    found: dict[tuple[Any, ...], Counts] = defaultdict(Counts)
    for row in groups:
        found[tuple(getattr(row, name) for name in names)] += _read(row)
    known = [(key, counts) for key, counts in found.items() if counts.labelled]
    return sorted(known, key=itemgetter(0), reverse=True)[:_GROUPS_LIMIT]


def _sliced(connection: Connection, application: str) -> Iterable[Row[Any]]:
    """Counts by version, the newest first, and by the declared slices' values."""
    answers = _answers(application, "slices")
    by = (answers.c.model_version, answers.c.slices)
    query = select(*by, *_counts(answers)).where(answers.c.slices.is_not(None)).group_by(*by)
    return connection.execute(query.order_by(answers.c.model_version.desc()))


def _counts(answers: FromClause) -> list[ColumnElement[Any]]:
    """What `_read` reads."""
    label, correct, error = (answers.c[name] for name in ("label", "correct", "error"))
    return [
        func.count(label).label("labelled"),
        (func.count() - func.count(label)).label("unlabelled"),
        func.coalesce(func.sum(correct, type_=Integer), 0).label("correct"),
        func.count(error).label("numbers"),
        func.coalesce(func.sum(error), 0.0).label("error"),
        func.coalesce(func.sum(error * error), 0.0).label("squares"),
    ]


def _read(row: Row[Any]) -> Counts:
    counts = {name: int(getattr(row, name)) for name in ("labelled", "unlabelled", "correct", "numbers")}
    return Counts(**counts, error=row.error, squares=row.squares)


def _figures(version: int, counts: Counts) -> dict[str, Any]:
    """Of numbers the error, else the accuracy."""
    of_all = {"model_version": version, "rows": counts.labelled, "unlabelled": counts.unlabelled}
    if counts.numbers:
        return of_all | {
            "mean_absolute_error": counts.error / counts.numbers,
            "error_interval_95": mean_95(counts.numbers, counts.error, counts.squares),
        }
    return of_all | {
        "correct": counts.correct,
        "accuracy": counts.correct / counts.labelled,
        "interval_95": wilson_95(counts.correct, counts.labelled),
    }
