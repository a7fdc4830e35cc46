"""What the labels of an experiment say of candidate and champion, and when that is enough to decide. Pure.

The gate's rules for one comparison, with bounds that hold whenever one looks (`sequential_tests`):
1. The candidate is promoted once it is surely not worse than the champion by more than the application's margin; where
   the application asks for a minimum effect, once it is surely better, and by that much as measured.
2. It is rejected once it is surely worse by more than the margin, or surely short of the minimum effect.
3. A shadow's is rejected, too, once it has had no answer to a hundredth of its events.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, sqrt
from typing import Literal

from batch_layer.criterion import Criterion
from batch_layer.sequential_tests import (
    half_width,
    least_alpha,
    mean_at_least,
    mean_at_most,
    p_of_mean,
    p_of_two_means,
)
from deeplambda.records.verdict import Comparison
from deeplambda.state.experiment_store import Experiment

LIVE = "live"
ALPHA = 0.05
"""The chance of a wrong promotion, and that of a wrong rejection, however often one looks."""
FAILURES, FAILED_SHARE = 20, 0.01


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of some labelled answers, by one version or as differences of two: 1 right and 0 wrong, or errors as negative
    numbers. above, below: how many are more than 0, and less."""

    rows: int = 0
    total: float = 0.0
    squares: float = 0.0
    above: int = 0
    below: int = 0

    @property
    def mean(self) -> float:
        return self.total / self.rows if self.rows else 0.0

    @property
    def deviation(self) -> float:
        return sqrt(max(0.0, self.squares / self.rows - self.mean**2)) if self.rows else 0.0

    @property
    def tally(self) -> dict[float, int]:
        """By value, where there are no others than -1, 0 and 1."""
        return {-1.0: self.below, 0.0: self.rows - self.above - self.below, 1.0: self.above}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What labels said so far. paired: of events that both answered. numbers: whether scores are errors of numbers."""

    candidate: Scores
    champion: Scores
    paired: Scores
    numbers: bool

    @property
    def rows(self) -> int:
        """Labels that count."""
        return self.paired.rows or self.candidate.rows + self.champion.rows


def compared(found: Labelled, kind: Literal["shadow", "canary"], against: int, criterion: Criterion) -> Comparison:
    """Candidate and champion by their labelled answers, of which there are some.

    A shadow's are of the same events; a canary's of different ones, so each version has bounds of its own, at half of
    alpha each.
    """
    paired = kind == "shadow"
    low_at, high_at = _bounds(found, paired=paired)
    low, high = low_at(ALPHA), high_at(ALPHA)
    value = found.paired.mean if paired else found.candidate.mean - found.champion.mean
    if found.numbers:
        p = least_alpha(low_at)
    elif paired:
        p = p_of_mean(found.paired.tally, -1.0)
    else:
        p = p_of_two_means(found.candidate.tally, found.champion.tally, 0.0, 1.0)
    sign = -1 if found.numbers else 1
    return Comparison(
        split=LIVE,
        against=against,
        role="champion",
        metric="absolute_error" if found.numbers else "share_right",
        rows=found.rows,
        candidate=sign * found.candidate.mean,
        other=sign * found.champion.mean,
        difference=value,
        low=low if low > -inf else None,
        high=high if high < inf else None,
        p=p,
        test="asymptotic" if found.numbers else "betting",
        refused=high < -criterion.margin,
    )


_Bound = Callable[[float], float]


def _bounds(found: Labelled, *, paired: bool) -> tuple[_Bound, _Bound]:
    """Lower and upper bound of how much better the candidate is, by alpha."""
    if not paired:
        ours, theirs = (_bounds_of_one(each, 0.0, numbers=found.numbers) for each in (found.candidate, found.champion))
        return (
            lambda alpha: ours[0](alpha / 2) - theirs[1](alpha / 2),
            lambda alpha: ours[1](alpha / 2) - theirs[0](alpha / 2),
        )
    return _bounds_of_one(found.paired, -1.0, numbers=found.numbers)


def _bounds_of_one(scores: Scores, least: float, *, numbers: bool) -> tuple[_Bound, _Bound]:
    """least: the least score that is possible, where they are no numbers."""
    if numbers:
        return (
            lambda alpha: scores.mean - half_width(scores.rows, scores.deviation, alpha),
            lambda alpha: scores.mean + half_width(scores.rows, scores.deviation, alpha),
        )
    return (
        lambda alpha: mean_at_least(scores.tally, least, alpha),
        lambda alpha: mean_at_most(scores.tally, 1.0, alpha),
    )


def decision(experiment: Experiment, criterion: Criterion) -> tuple[Literal["promoted", "rejected"], str] | None:
    """What an experiment is to end with, and why; None while that is open."""
    answers = experiment.answered + experiment.failed
    if experiment.failed >= FAILURES and experiment.failed > FAILED_SHARE * answers:
        return (
            "rejected",
            f"it had no answer to {experiment.failed} of {answers} events, of the last: {experiment.failure}",
        )
    found = experiment.comparison
    if found is None:
        return None
    wanted = criterion.minimum_effect
    low, high = (
        (-inf if found.low is None else found.low),
        (inf if found.high is None else found.high),
    )
    if high < (wanted if wanted is not None else -criterion.margin):
        short = (
            f"not better by {wanted:g}"
            if wanted is not None
            else f"worse by more than the margin of {criterion.margin:g}"
        )
        return "rejected", f"on live events it is {short}: {in_words(found)}"
    if wanted is None and low >= -criterion.margin:
        return (
            "promoted",
            f"on live events it is not worse by more than the margin of {criterion.margin:g}: {in_words(found)}",
        )
    if wanted is not None and low > 0 and found.difference >= wanted:
        return "promoted", f"on live events it is better, as measured by {wanted:g}: {in_words(found)}"
    return None


def in_words(found: Comparison) -> str:
    """A live comparison in one line."""
    between = (
        f", surely between {found.low:+.4f} and {found.high:+.4f}"
        if found.low is not None and found.high is not None
        else ""
    )
    return (
        f"{found.metric.replace('_', ' ')} {found.candidate:.4f} beside {found.other:.4f} of version {found.against} "
        f"by {found.rows:,} labels, {found.difference:+.4f}{between}"
    )
