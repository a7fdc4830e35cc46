"""Answers: a model's raw outputs as predictions that the records and tables can hold, each row for itself.

Stream, recomputation, REST and SQL call `answers`, so all of them refuse the same rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplambda.errors import InvalidEvent
from deeplambda.features import finite_rows
from deeplambda.objective import PREDICTION_LIMIT, SCORES_LIMIT, Objective, Predictions
from deeplambda.records.featurizer import said
from deeplambda.records.isolation import halved

_REMEDY = "let the objective decode every output to a text and a confidence in [0, 1]"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """rows_N: positions of the rows that have an answer; values_N, confidence_N, numbers_N, scores_N: theirs, the last
    two None where the objective has none. refused: by position, why."""

    rows_N: Sequence[int]
    values_N: Sequence[str]
    confidence_N: NDArray[np.float64]
    numbers_N: Sequence[float | None]
    scores_N: Sequence[dict[str, float] | None]
    refused: dict[int, InvalidEvent]

    def all(self) -> Predictions:
        """Those of all rows. Raises: InvalidEvent that names the first row without one."""
        if self.refused:
            first = min(self.refused)
            raise InvalidEvent(f"row {first}: {self.refused[first].message}", self.refused[first].remedy)
        return Predictions(
            values=self.values_N,
            confidence_N=self.confidence_N,
            numbers_N=np.array([np.nan if number is None else number for number in self.numbers_N]),
            scores=self.scores_N,
        )


def answers(objective: Objective, outputs: NDArray[np.float32]) -> Answers:
    """What the objective makes of a model's outputs, (N, C) or (N,). Rows whose outputs are not finite have none."""

    def decode(rows: slice) -> Predictions:
        try:
            return _checked(objective.decode(outputs[rows]), rows.stop - rows.start)
        except InvalidEvent:
            raise
        except Exception as exc:  # a user's objective may raise anything
            raise InvalidEvent(f"the objective raised {said(exc)}", _REMEDY) from exc

    found = halved(decode, len(outputs), InvalidEvent)
    refused = {row: InvalidEvent(exc.message, exc.remedy) for row, exc in found.refused.items()}
    return Answers(
        rows_N=found.rows,
        values_N=[value for _, piece in found.pieces for value in piece.values],
        confidence_N=np.concatenate([np.zeros(0), *(piece.confidence_N for _, piece in found.pieces)]),
        numbers_N=[piece.number(row) for _, piece in found.pieces for row in range(len(piece.values))],
        scores_N=[piece.scores_of(row) for _, piece in found.pieces for row in range(len(piece.values))],
        refused=refused,
    )


def finite(outputs: NDArray[np.float32]) -> NDArray[np.bool_]:
    """By row, whether all of a model's outputs are finite."""
    return finite_rows({"outputs": outputs}, len(outputs))


def _checked(given: Predictions, rows: int) -> Predictions:
    values, confidence_N = list(given.values), np.asarray(given.confidence_N, dtype=np.float64)
    numbers_N = None if given.numbers_N is None else np.asarray(given.numbers_N, dtype=np.float64)
    if (len(values), confidence_N.shape) != (rows, (rows,)):
        raise InvalidEvent(f"the objective gives {len(values)} predictions for {rows} rows", _REMEDY)
    if numbers_N is not None and numbers_N.shape != (rows,):
        raise InvalidEvent(f"the objective gives numbers of shape {numbers_N.shape} for {rows} rows", _REMEDY)
    if given.scores is not None and len(given.scores) != rows:
        raise InvalidEvent(f"the objective gives {len(given.scores)} scores for {rows} rows", _REMEDY)
    found = Predictions(values=values, confidence_N=confidence_N, numbers_N=numbers_N, scores=given.scores)
    if _sound_at_a_glance(found):
        return found
    for row, (value, confidence) in enumerate(zip(values, confidence_N.tolist(), strict=True)):
        if wrong := _fault(value, confidence, found.number(row), found.scores_of(row)):
            raise InvalidEvent(wrong, _REMEDY)
    return found


def _sound_at_a_glance(found: Predictions) -> bool:
    """Whether all rows together show no fault. Where they may have one each is looked at, which takes several times as
    long."""
    scores = [] if found.scores is None else [of_row for of_row in found.scores if of_row is not None]
    shares = list(chain.from_iterable(of_row.values() for of_row in scores))
    return (
        {*map(type, found.values), *map(type, chain.from_iterable(scores))} <= {str}
        and {*map(type, shares)} <= {float}
        and "".join(found.values).isascii()
        and max(map(len, found.values), default=0) <= PREDICTION_LIMIT
        and max(map(len, scores), default=0) <= SCORES_LIMIT
        and not np.isinf(found.confidence_N).any()
        and (found.numbers_N is None or not np.isinf(found.numbers_N).any())
        and bool(np.isfinite(np.array(shares)).all())
    )


def _fault(value: Any, confidence: float, number: float | None, scores: Mapping[str, float] | None) -> str | None:
    if not isinstance(value, str):
        return f"the prediction is {type(value).__name__}, not text"
    if len(value) > PREDICTION_LIMIT:
        return f"the prediction has {len(value)} characters, {PREDICTION_LIMIT} are the limit"
    if math.isinf(confidence):
        return f"the confidence is {confidence}"
    if number is not None and math.isinf(number):
        return f"the number is {number}"
    if scores is not None and len(scores) > SCORES_LIMIT:
        return f"the prediction has {len(scores)} scores, {SCORES_LIMIT} are the limit"
    if scores is not None and not all(isinstance(name, str) and math.isfinite(of) for name, of in scores.items()):
        return "a score is not a finite number by the name of a class"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "the prediction is text that UTF-8 cannot hold"
    return None
