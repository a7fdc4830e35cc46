"""How sure a difference between two models is while labels come one by one, whenever one looks. Pure.

A fixed-sample test that is asked again after each label is wrong sooner or later. These bounds hold at all times at
once (confidence sequences): of one that is read after each label, for as long as anybody likes, the truth is ever
outside with a chance of `alpha` at most.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

NUMBERS_FROM = 200
"""Fewer numbers give no bound: their variance is not known well enough."""
_BETS = np.geomspace(0.001, 0.95, 32)
"""Shares of a capital that bets: one of them is nearly right for any difference and any variance."""
_MIXTURE = (-2 * math.log(0.05) + math.log(1 - 2 * math.log(0.05))) / 500
"""The paper's rho squared: bounds of numbers are narrowest at 500 rows, and nearly so from 50 to 5,000."""
_HALVINGS = 20


def mean_at_least(tally: Mapping[float, int], floor: float, alpha: float) -> float:
    """A lower bound of the mean of a variable of few values, such as right and wrong; exact for any number of rows.

    tally: by value, how often it was seen. floor: the least value that there is.
    Capital is bet against "the mean is m": where that is so, it ever grows to 1/alpha with a chance of alpha at most.
    The bound is the least m that it has not won against.
    Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting (2024), J. R. Stat. Soc. B
    86, with a grid of bets; Ville, Étude critique de la notion de collectif (1939).
    """
    if not any(count for value, count in tally.items() if value > floor):
        return floor
    low, high = floor, _mean(tally)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        wins = log_capital(tally, floor, middle) >= -math.log(alpha)
        low, high = (middle, high) if wins else (low, middle)
    return low


def log_capital(tally: Mapping[float, int], floor: float, mean: float) -> float:
    """What a capital of 1 has grown to that bet against `mean`, as a logarithm; it says how sure a larger one is."""
    bets = [count * np.log1p(_BETS * ((value - floor) / (mean - floor) - 1)) for value, count in tally.items() if count]
    return float(np.logaddexp.reduce(sum(bets))) - math.log(len(_BETS))


def mean_at_most(tally: Mapping[float, int], ceiling: float, alpha: float) -> float:
    """The upper bound, likewise."""
    return -mean_at_least({-value: count for value, count in tally.items()}, -ceiling, alpha)


def half_width(rows: int, deviation: float, alpha: float) -> float:
    """How far the true mean of numbers without known limits, such as errors, may be below their mean; or above it.

    It holds for many rows, whatever the numbers' distribution; infinite for fewer than `NUMBERS_FROM`.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit theory and asymptotic confidence
    sequences (2024), Annals of Statistics 52, its one-sided form; Robbins, Statistical methods related to the law of
    the iterated logarithm (1970), Annals of Mathematical Statistics 41.
    """
    if rows < NUMBERS_FROM:
        return math.inf
    spread = rows * _MIXTURE + 1
    return deviation * math.sqrt(2 * spread / (rows**2 * _MIXTURE) * math.log1p(math.sqrt(spread) / (2 * alpha)))


def p_of_mean(tally: Mapping[float, int], floor: float) -> float:
    """How likely the mean ever looks this much above 0 where it is not."""
    return min(1.0, math.exp(-log_capital(tally, floor, 0.0)))


def p_of_two_means(ours: Mapping[float, int], theirs: Mapping[float, int], floor: float, ceiling: float) -> float:
    """How likely the first mean ever looks this much above the second, of other rows, where it is not: the least alpha
    at half of which, each, their bounds part."""
    least, most = _mean(theirs), _mean(ours)
    if not most > least:
        return 1.0
    mirrored = {-value: count for value, count in theirs.items()}
    above = below = 0.0
    for _ in range(_HALVINGS):
        between = (least + most) / 2
        above, below = log_capital(ours, floor, between), log_capital(mirrored, -ceiling, -between)
        least, most = (between, most) if above > below else (least, between)
    return min(1.0, 2 * math.exp(-min(above, below)))


def least_alpha(low_at: Callable[[float], float]) -> float:
    """The same of numbers: the least alpha whose lower bound is above 0. low_at: that bound, by alpha."""
    least, most = -100.0, 0.0  # of its logarithm
    if low_at(1.0) <= 0:
        return 1.0
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        least, most = (least, middle) if low_at(math.exp(middle)) > 0 else (middle, most)
    return math.exp(most)


def _mean(tally: Mapping[float, int]) -> float:
    return sum(value * count for value, count in tally.items()) / max(1, sum(tally.values()))
