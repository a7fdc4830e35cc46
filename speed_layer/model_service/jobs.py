"""A request's rows on their way through the model."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from deeplambda.application import Event
from deeplambda.errors import DeadlinePassed, DeepLambdaError, InvalidEvent, Overloaded
from deeplambda.features import Features, row_count
from deeplambda.objective import Predictions
from deeplambda.service.load_shedding import LESS_LOAD
from speed_layer.model_service.champions import Champion
from speed_layer.model_service.statistics import Times


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What the model says of N rows. predictions: None where they were not asked for."""

    outputs: NDArray[np.float32]
    predictions: Predictions | None


class Job:
    """The rows of one request, all for one champion: events, or features that somebody else has made.

    decodes: whether its predictions are wanted beside the raw outputs. until: `time.monotonic()` by which the answer
    has to be there. scored: what waits for it; a large job goes through the model in several parts. times: of the
    passes that had some of its rows.
    """

    def __init__(
        self,
        champion: Champion,
        rows: Sequence[Event] | Features,
        *,
        decodes: bool = True,
        until: float = float("inf"),
    ) -> None:
        self.champion, self.decodes, self.until = champion, decodes, until
        self.events: Sequence[Event] = () if isinstance(rows, dict) else rows
        self.features: Features = rows if isinstance(rows, dict) else {}
        self.count = len(self.events) or row_count(self.features)
        self.scored: Future[Scored] = Future()
        self.times: list[Times] = []
        self._taken = 0
        self._left = self.count
        self._pieces: list[tuple[int, Scored]] = []

    @property
    def waiting(self) -> int:
        """How many of its rows no pass has taken yet."""
        return self.count - self._taken

    @property
    def left_s(self) -> float | None:
        """How long its answer may still take; None: as long as it will."""
        return None if self.until == float("inf") else max(0.0, self.until - time.monotonic())

    @property
    def too_late(self) -> Overloaded | DeadlinePassed:
        """Why it has no answer in time: no pass took it, or the one that did takes longer."""
        if self.waiting == self.count:
            return Overloaded("the request's time was over before its turn came", LESS_LOAD)
        return self.late

    @property
    def late(self) -> DeadlinePassed:
        """That it has none, whatever the reason."""
        return DeadlinePassed("the answer would have come later than the request asks", "give it more time")

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more, or its time is over."""
        return self.scored.done() or time.monotonic() > self.until

    def take(self, most: int) -> "Piece":
        """The next rows for a pass, up to `most`."""
        piece = Piece(job=self, first=self._taken, count=min(most, self.waiting))
        self._taken += piece.count
        return piece

    def fail(self, exc: BaseException) -> None:
        """End it with an error, unless it has ended."""
        with suppress(InvalidStateError):  # whoever waited may have given up
            self.scored.set_exception(exc)

    def deliver(self, first: int, scored: Scored) -> None:
        """What the model says of the rows from `first` on; the last ones to come end the job."""
        self._pieces.append((first, scored))
        self._left -= len(scored.outputs)
        if self._left == 0:
            with suppress(InvalidStateError):
                self.scored.set_result(_joined([piece for _, piece in sorted(self._pieces, key=itemgetter(0))]))


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows `first` to `first + count` of a job: what one pass takes of it."""

    job: Job
    first: int
    count: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.count)

    def refuse(self, row: int, refusal: DeepLambdaError) -> None:
        """End its job, for no answer exists for this row of the piece."""
        kind = "instance" if self.job.events else "row"
        self.job.fail(InvalidEvent(f"{kind} {self.first + row}: {refusal.message}", refusal.remedy))


def part_of(predictions: Predictions, rows: slice) -> Predictions:
    """Some rows' predictions."""
    return replace(
        predictions,
        values=predictions.values[rows],
        confidence_N=predictions.confidence_N[rows],
        numbers_N=None if predictions.numbers_N is None else predictions.numbers_N[rows],
        scores=None if predictions.scores is None else predictions.scores[rows],
    )


def _joined(pieces: list[Scored]) -> Scored:
    if len(pieces) == 1:
        return pieces[0]
    found = [piece.predictions for piece in pieces if piece.predictions is not None]
    predictions = found and Predictions(
        values=list(chain.from_iterable(each.values for each in found)),
        confidence_N=np.concatenate([each.confidence_N for each in found]),
        numbers_N=np.concatenate([each.numbers_N for each in found if each.numbers_N is not None]),
        scores=list(chain.from_iterable(each.scores or () for each in found)),
    )
    return Scored(outputs=np.concatenate([piece.outputs for piece in pieces]), predictions=predictions or None)
