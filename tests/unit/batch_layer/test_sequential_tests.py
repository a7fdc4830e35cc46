"""Bounds that hold whenever one looks: how often experiments end wrongly, and how soon rightly, over seeded streams."""

from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from batch_layer.criterion import Criterion
from batch_layer.live_verdicts import ALPHA, Labelled, Scores, compared, decision
from deeplambda.clock import now
from deeplambda.state.experiment_store import Experiment, Kind

MARGIN = 0.01
CRITERION = Criterion(metric="accuracy", margin=MARGIN)
ROWS = 6_000
CASES = [(kind, numbers) for kind in ("shadow", "canary") for numbers in (False, True)]
NAMES = ["a shadow of classes", "a shadow of numbers", "a canary of classes", "a canary of numbers"]


def scores(values: NDArray[np.float64]) -> Scores:
    return Scores(
        rows=len(values),
        total=float(values.sum()),
        squares=float((values**2).sum()),
        above=int((values > 0).sum()),
        below=int((values < 0).sum()),
    )


def end(kind: Kind, gain: float, seed: int, *, numbers: bool) -> Literal["promoted", "rejected"] | None:
    """How an experiment ends that is looked at time and again. gain: how much better the candidate is in truth."""
    candidate, champion = drawn(np.random.default_rng(seed), gain, numbers=numbers)
    for seen in np.unique(np.geomspace(10, ROWS, 15).astype(int)):
        ours, theirs = candidate[:seen], champion[:seen]
        paired = scores(ours - theirs) if kind == "shadow" else Scores()
        if kind == "canary":  # events of its own, a fifth of all
            ours, theirs = candidate[: max(1, seen // 5)], champion[seen // 5 : seen]
        found = Labelled(candidate=scores(ours), champion=scores(theirs), paired=paired, numbers=numbers)
        experiment = Experiment(
            application="digits",
            number=1,
            kind=kind,
            version=2,
            champion=1,
            share=0.2,
            until_decided=True,
            started_at=now(),
            comparison=compared(found, kind, 1, CRITERION),
        )
        if (decided := decision(experiment, CRITERION)) is not None:
            return decided[0]
    return None


def drawn(random: np.random.Generator, gain: float, *, numbers: bool) -> tuple[NDArray[np.float64], ...]:
    """Scores of candidate and champion for the same events."""
    if numbers:  # of errors with a long tail, which both have of the same events
        shared = random.lognormal(-1, 0.8, ROWS)
        return gain - shared * random.lognormal(-0.045, 0.3, ROWS), -shared * 1.0
    theirs = random.random(ROWS) < 0.8
    ours = np.where(
        theirs, random.random(ROWS) < 0.95 + 1.25 * min(gain, 0), random.random(ROWS) < 0.2 + 5 * max(gain, 0)
    )
    return ours.astype(float), theirs.astype(float)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "numbers"), CASES, ids=NAMES)
def test_a_candidate_at_the_margin_is_seldom_decided_on_however_often_one_looks(kind: Kind, numbers: bool) -> None:
    ends = [end(kind, -MARGIN, seed, numbers=numbers) for seed in range(100)]
    assert ends.count("promoted") <= ALPHA * len(ends)
    assert ends.count("rejected") <= ALPHA * len(ends)


@pytest.mark.parametrize(("kind", "numbers"), CASES, ids=NAMES)
def test_what_is_clearly_better_is_promoted_and_what_is_clearly_worse_rejected(kind: Kind, numbers: bool) -> None:
    gain = {"shadow": 0.03, "canary": 0.1}[kind] * (2 if numbers else 1)
    assert [end(kind, gain, seed, numbers=numbers) for seed in range(10)] == ["promoted"] * 10
    assert [end(kind, -gain - MARGIN, seed, numbers=numbers) for seed in range(10)] == ["rejected"] * 10
