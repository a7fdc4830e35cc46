"""The confidence interval of a share."""

from math import sqrt

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
