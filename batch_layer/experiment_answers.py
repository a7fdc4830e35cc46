"""The answers of an experiment's versions in MySQL, their labels and scores, and the figures that follow from them."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, case, delete, func, select

from batch_layer.criterion import Criterion
from batch_layer.live_verdicts import Labelled, Scores, compared
from deeplambda.records.experiments import Said
from deeplambda.state.experiment_store import Experiment
from deeplambda.state.tables import EXPERIMENT_ANSWERS

WAITING_ROWS = 200_000
"""Answers of an experiment that may wait for their label; the oldest give way."""
_ERROR_LIMIT = 1e100
"""What is further off is no label but a mistake, and MySQL could not add up its squares."""

_ANSWERS = EXPERIMENT_ANSWERS.c


def of_experiment(experiment: Experiment) -> Any:
    """The condition of its rows."""
    return (_ANSWERS.application == experiment.application) & (_ANSWERS.experiment == experiment.number)


def answer_row(
    event_id: str, candidate: Said | None, champion: Said | None, error: str | None, at: datetime
) -> dict[str, Any]:
    """One event's, without what is of the experiment. candidate, champion: None where it was not asked, or failed."""
    return {
        "event_id": event_id,
        "candidate": candidate.prediction if candidate else None,
        "candidate_value": candidate.value if candidate else None,
        "champion": champion.prediction if champion else None,
        "champion_value": champion.value if champion else None,
        "error": error,
        "at": at.astimezone(UTC),
    }


def scored(row: Any, label: str) -> dict[str, Any]:
    """An answer's columns once its label is known. A shadow without an answer was wrong."""
    scores = {"candidate_score": _score(row.candidate, row.candidate_value, label)}
    scores["champion_score"] = _score(row.champion, row.champion_value, label)
    if row.error is not None and row.champion is not None and row.champion_value is None:
        scores["candidate_score"] = 0.0
    return {"label": label, **scores}


def _score(prediction: str | None, value: float | None, label: str) -> float | None:
    if prediction is None:
        return None
    if value is None:
        return float(prediction == label)
    try:
        error = abs(value - float(label))
    except ValueError:
        return None
    return -error if error < _ERROR_LIMIT else None  # NaN is not either


def figures(connection: Connection, experiment: Experiment, criterion: Criterion) -> dict[str, Any]:
    """An experiment's figures, by its rows of `experiment_answers`; of a canary, since its first answer."""
    ours, theirs = _ANSWERS.candidate_score, _ANSWERS.champion_score
    sums = [column for score in (ours, theirs, ours - theirs) for column in _sums(score)]
    counted = of_experiment(experiment)
    if experiment.kind == "canary":  # what the champion answered before anybody asked the candidate is of another time
        first = select(func.min(_ANSWERS.at)).where(counted, _ANSWERS.candidate.is_not(None)).correlate(None)
        counted &= _ANSWERS.champion.is_(None) | (_ANSWERS.at >= first.scalar_subquery())
    query = select(
        func.count(_ANSWERS.candidate),
        _many(_ANSWERS.candidate == _ANSWERS.champion),
        func.count(_ANSWERS.error),
        func.count(func.coalesce(_ANSWERS.candidate_value, _ANSWERS.champion_value)),
        *sums,
    ).where(counted)
    answered, agreed, failed, numbers, *rest = connection.execute(query).one()
    candidate, champion, paired = (
        Scores(rows=rows, total=total or 0.0, squares=squares or 0.0, above=above, below=below)
        for rows, total, squares, above, below in (rest[n : n + 5] for n in (0, 5, 10))
    )
    found = Labelled(candidate=candidate, champion=champion, paired=paired, numbers=bool(numbers))
    failures = select(_ANSWERS.error).where(of_experiment(experiment), _ANSWERS.error.is_not(None))
    last = connection.scalar(failures.order_by(_ANSWERS.id.desc()).limit(1)) if failed else None
    known: dict[str, Any] = {"answered": answered, "failed": failed, "failure": last, "labelled": found.rows}
    if experiment.kind == "shadow":
        known["agreed"] = agreed
    if found.rows:
        known["comparison"] = compared(found, experiment.kind, experiment.champion, criterion)
    return known


def _sums(score: Any) -> list[Any]:
    return [func.count(score), func.sum(score), func.sum(score * score), _many(score > 0), _many(score < 0)]


def _many(condition: Any) -> Any:
    return func.count(case((condition, 1)))


def forget_oldest(connection: Connection, experiment: Experiment) -> None:
    """Delete the oldest answers that still wait for a label, where too many do."""
    waiting = of_experiment(experiment) & _ANSWERS.label.is_(None)
    oldest = select(_ANSWERS.id).where(waiting).order_by(_ANSWERS.id.desc()).offset(WAITING_ROWS).limit(1)
    if (last := connection.scalar(oldest)) is not None:
        connection.execute(delete(EXPERIMENT_ANSWERS).where(waiting, _ANSWERS.id <= last))
