"""Quality in numbers: the statistics of the audit, and what an application's expectations say of them.

The dimensions are those of `deeplambda.application.MEASURES`. A measure that compares samples gives only what chance
does not explain in 999 of 1,000 cases, so a bound on it is a bound on the true difference and few rows break none.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtri  # not scipy.stats, which each of Spark's workers would load for a second

from deeplambda.application import MEASURES, Expect
from deeplambda.records.lifecycle import QualityMeasure

FALSE_ALARMS = 0.001
"""How often chance alone may give a difference above 0 where there is none."""


def measure(name: str, value: float, rows: int, field: str | None = None) -> QualityMeasure:
    """A figure, with its dimension. rows: that it is of."""
    return QualityMeasure(dimension=MEASURES[name], measure=name, field=field, value=value, rows=rows)


def share(name: str, some: int, rows: int, field: str | None = None) -> QualityMeasure:
    """The figure `some` of `rows`; 0 of none."""
    return measure(name, some / rows if rows else 0.0, rows, field)


def distribution_shift(new: Mapping[Any, int], known: Mapping[Any, int]) -> float:
    """How far the labels of new rows are distributed otherwise than those that are known; 0 is none, 1 no label alike.

    new, known: rows by label. It is Cramér's V of both as samples of one weight, less what chance explains; Cohen calls
    0.3 medium and 0.5 large. Source: Cohen, Statistical Power Analysis (1988), ch. 7.
    """
    new_rows, known_rows = sum(new.values()), sum(known.values())
    if not new_rows or not known_rows:
        return 0.0
    squared = 0.0
    for label in new.keys() | known.keys():
        of_new, of_known = new.get(label, 0) / new_rows, known.get(label, 0) / known_rows
        squared += (of_new - of_known) ** 2 / (of_new + of_known) / 2
    freedom = len(new.keys() | known.keys()) - 1
    by_chance = float(chdtri(freedom, FALSE_ALARMS)) * (1 / new_rows + 1 / known_rows) / 4 if freedom else 0.0
    return math.sqrt(max(0.0, squared - by_chance))


def excess_error(new_N: NDArray[np.float64], known_M: NDArray[np.float64]) -> float:
    """How much more often the errors of new rows are the larger ones than those of known rows, in [0, 1].

    new_N, known_M: an error of each row, such as 0 or 1, or a distance. It is Cliff's delta, which of zeros and ones is
    the difference of their means, less what chance explains. Source: Cliff, Psychological Bulletin 114 (1993).
    """
    if not len(new_N) or not len(known_M):
        return 0.0
    ranked_M = np.sort(known_M)
    smaller, not_larger = (np.searchsorted(ranked_M, new_N, side=side).sum() for side in ("left", "right"))
    delta = float(smaller + not_larger) / (len(new_N) * len(known_M)) - 1
    of_alike = math.sqrt((1 / len(new_N) + 1 / len(known_M) + 1 / (len(new_N) * len(known_M))) / 3)  # its deviation
    return max(0.0, delta - float(-ndtri(FALSE_ALARMS)) * of_alike)


def broken(expectations: Iterable[Expect], measures: Sequence[QualityMeasure]) -> list[tuple[Expect, str]]:
    """The expectations that do not hold, each with a sentence that says by what."""
    return [
        (expected, sentence(found) + f", at most {expected.at_most:g} is expected")
        for expected in expectations
        for found in measures
        if found.measure == expected.measure
        and expected.field in (None, found.field)
        and not found.value <= expected.at_most  # what is no number is not as expected
    ]


def sentence(found: QualityMeasure) -> str:
    """The figure in words."""
    of = f" of {found.field}" if found.field else ""
    return f"{found.measure}{of} is {found.value:.4g} over {found.rows:,} rows"
