"""Answers: a model's raw outputs as predictions that the records and tables can hold, each row for itself.

Stream, recomputation, REST and SQL call `answers`, so all of them refuse the same rows. Model service, recomputation,
audits and shadows ask their models by `outputs_of`. A row is refused for whatever model or objective raise on it, save
what is no row's fault: with memory, or another device, there is an answer to the same row, and `NotReady` says so.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deeplambda.errors import DeviceFailed, InvalidEvent, NotReady
from deeplambda.features import Features, chosen, finite_rows, row_count
from deeplambda.objective import PREDICTION_LIMIT, SCORES_LIMIT, Objective, Predictions
from deeplambda.records.featurizer import said
from deeplambda.records.isolation import halved

_REMEDY = "let the objective decode every output to a text and a confidence in [0, 1]"
_SEEN_VALUES = "send values like those that the model was trained on"
_NO_MEMORY = re.compile("(CUDA|HIP)[a-z ]*:? out of memory|_ALLOC_FAILED")
"""Of a device, which others use as well. On the CPU an allocation fails that is absurd, so it is the row's fault: where
memory is short the kernel ends the process."""
_OF_DEVICE = re.compile("^(CUDA|HIP|cuDNN|MIOpen) error|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_")
"""How PyTorch, which is not imported here, words its errors of allocators and of accelerators."""

T = TypeVar("T")


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
        given = _attempted(lambda: objective.decode(outputs[rows]), "objective", _REMEDY)
        return _attempted(lambda: _checked(given, rows.stop - rows.start), "objective", _REMEDY)

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


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """rows_N: positions of the rows that have finite outputs. outputs_N: theirs. refused: by position, why."""

    rows_N: Sequence[int]
    outputs_N: NDArray[np.float32]
    refused: dict[int, InvalidEvent]


def outputs_of(run: Callable[[Features], NDArray[np.float32]], features: Features) -> Outputs:
    """A model's outputs, of each row for which it has some. run: the model, given some of the rows; it may raise.

    Raises: NotReady and DeviceFailed for what is no row's fault, TooManyRefused.
    """

    def attempt(rows: slice) -> NDArray[np.float32]:
        given, count = _attempted(lambda: run(chosen(features, rows)), "model", _SEEN_VALUES), rows.stop - rows.start
        if given.shape[:1] != (count,):
            raise InvalidEvent(f"the model gives outputs of shape {given.shape} for {count} rows", _SEEN_VALUES)
        return given

    found = halved(attempt, row_count(features), InvalidEvent)
    refused = {row: InvalidEvent(exc.message, exc.remedy) for row, exc in found.refused.items()}
    rows, pieces = found.rows, [piece for _, piece in found.pieces]
    if not pieces:
        return Outputs(rows_N=[], outputs_N=np.zeros((0,), np.float32), refused=refused)
    outputs_N = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    finite_N = finite_rows({"outputs": outputs_N}, len(outputs_N))
    if finite_N.all():
        return Outputs(rows_N=rows, outputs_N=outputs_N, refused=refused)
    wrong = InvalidEvent("the model's outputs are not finite", _SEEN_VALUES)
    return Outputs(
        rows_N=[row for row, sound in zip(rows, finite_N, strict=True) if sound],
        outputs_N=outputs_N[finite_N],
        refused=refused | {row: wrong for row, sound in zip(rows, finite_N, strict=True) if not sound},
    )


def answered(run: Callable[[Features], NDArray[np.float32]], objective: Objective, features: Features) -> Answers:
    """The predictions of the rows for which model and objective have an answer, and why the others have none.

    run, Raises: as `outputs_of`.
    """
    asked = outputs_of(run, features)
    found = answers(objective, asked.outputs_N)
    return replace(
        found,
        rows_N=[asked.rows_N[n] for n in found.rows_N],
        refused=asked.refused | {asked.rows_N[n]: exc for n, exc in found.refused.items()},
    )


def _attempted(call: Callable[[], T], what: str, remedy: str) -> T:
    try:
        return call()
    except (InvalidEvent, KeyboardInterrupt):
        raise
    except BaseException as exc:  # a user's code may raise anything, on values that training has not seen
        if isinstance(exc, RuntimeError) and _NO_MEMORY.search(str(exc)):
            raise NotReady(f"the device has too little memory for the {what}: {said(exc)}", "give it more") from exc
        if isinstance(exc, RuntimeError) and _OF_DEVICE.search(str(exc)):
            raise DeviceFailed(f"the device failed under the {what}: {said(exc)}", "see the log") from exc
        raise InvalidEvent(f"the {what} raised {said(exc)}", remedy) from exc


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
