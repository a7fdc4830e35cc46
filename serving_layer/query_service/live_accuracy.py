"""How good what the stream answered was, by the version that did, where labels are known.

Of classes and labels that is the accuracy: the share of predictions that equal their label, as text. Of numbers it is
the mean absolute error.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Integer, Row, case, func, null, select, union_all

from deeplambda.state.tables import LIVE_ANSWERS, LIVE_ANSWERS_KEPT, REALTIME_PREDICTIONS
from serving_layer.query_service.intervals import mean_95, wilson_95
from serving_layer.query_service.messages import LabelledClass, LabelledHour, LabelledSlice, LabelledVersion
from serving_layer.query_service.slices import Counts, by_slice

GROUPS_LIMIT = 200
"""Versions, hours and classes that are told of, each."""


@dataclass(frozen=True, kw_only=True)
class LiveAccuracy:
    """An application's, the newest version first. hours: the newest first, of all versions. classes: of the newest
    version alone, the one with the most rows first."""

    versions: list[LabelledVersion]
    hours: list[LabelledHour]
    classes: list[LabelledClass]
    slices: list[LabelledSlice]


def live_accuracy(connection: Connection, application: str) -> LiveAccuracy:
    """By version, and by hour, class and slice."""
    answers = _counted(connection, application)
    newest = max((row.model_version for row in answers if row.labelled), default=None)
    of_newest = [row for row in answers if row.model_version == newest and row.truth is not None]
    return LiveAccuracy(
        versions=[
            LabelledVersion(**_figures(version, counts))
            for (version,), counts in newest_first(answers, "model_version")
        ],
        hours=[
            LabelledHour(hour=hour, **_figures(version, counts))
            for (hour, version), counts in newest_first(answers, "hour", "model_version")
        ],
        classes=[
            LabelledClass(label=label, **_figures(version, counts))
            for (version, label), counts in largest_first(of_newest, "model_version", "truth")
        ],
        slices=[
            LabelledSlice(slice=name, **_figures(version, counts))
            for version, groups in groupby(_sliced(connection, application), attrgetter("model_version"))
            for name, counts in by_slice((row.slices, _read(row)) for row in groups)
        ],
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


def newest_first(groups: Iterable[Any], *names: str) -> list[tuple[tuple[Any, ...], Counts]]:
    """Counts by some columns, those of the highest values; groups: rows as `_counted` finds them."""
    return sorted(_summed(groups, names), key=itemgetter(0), reverse=True)[:GROUPS_LIMIT]


def largest_first(groups: Iterable[Any], *names: str) -> list[tuple[tuple[Any, ...], Counts]]:
    """The same, those with the most labelled rows."""
    return sorted(_summed(groups, names), key=lambda group: (-group[1].labelled, group[0]))[:GROUPS_LIMIT]


def _summed(groups: Iterable[Any], names: Sequence[str]) -> list[tuple[tuple[Any, ...], Counts]]:
    """Without groups that have no label."""
    found: dict[tuple[Any, ...], Counts] = defaultdict(Counts)
    for row in groups:
        found[tuple(getattr(row, name) for name in names)] += _read(row)
    return [(key, counts) for key, counts in found.items() if counts.labelled]


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


def _read(row: Any) -> Counts:
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
