"""Confidence intervals: of a share, and of a mean."""

from math import sqrt

from scipy.special import stdtrit

_Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson_95(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a share, within [0, 1]; (0, 1) without trials.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927), JASA 22.
    """
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 / (1 + z2 / trials) * sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_95(rows: int, total: float, squares: float) -> tuple[float, float] | None:
    """Student's 95 % confidence interval of a mean that is not negative; None of fewer than two rows.

    total, squares: the sums of the values and of their squares. Source: Student, The probable error of a mean (1908).
    """
    if rows < 2:
        return None
    mean = total / rows
    variance = max(0.0, squares - rows * mean**2) / (rows - 1)
    half = float(stdtrit(rows - 1, 0.975)) * sqrt(variance / rows)
    return max(0.0, mean - half), mean + half
