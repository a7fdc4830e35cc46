"""Drift: whether a window of live rows is still like those that a version was judged by, however often one looks. Pure.

1. Each column of a window is compared with its histogram by the chi-square test of homogeneity. All windows are held
   against the same reference, which is off by chance itself, the more the fewer rows it has: p is the largest for the
   distributions that its rows do not rule out. Source: Berger and Boos, P values maximized over a confidence set for
   the nuisance parameter (1994), JASA 89.
2. The columns' p become one e-value: the mean of what the calibrator 1/(2√p) makes of each, which holds however the
   columns depend on one another. Source: Vovk and Wang, E-values: calibration, combination and applications (2021),
   Annals of Statistics 49.
3. E-values of windows add up by M ← (M + 1)·e, and an alarm is raised when M reaches the threshold. While nothing
   drifts, that is once in `threshold` windows or less often; the chance of one in the first w is at most w/threshold.
   Source: Shin, Ramdas and Rinaldo, E-detectors: a nonparametric framework for sequential change detection (2024),
   New England Journal of Statistics in Data Science 2.
Legend: K columns, B bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom, chi2, chi2_contingency, false_discovery_control, ncx2

from batch_layer.summaries import Column, Histogram
from deeplambda.records.lifecycle import DriftedField

DETECTORS = 3
"""Inputs, predictions and accuracy each have one."""
WINDOWS_TO_FALSE_ALARM = 10_000
"""On average, and at least, of the detectors together."""
THRESHOLD = float(DETECTORS * WINDOWS_TO_FALSE_ALARM)
_FEW = 5.0
"""Bins in which a window is expected to have fewer rows are tested together. Source: Cochran (1954), Biometrics 10."""
_RULED_OUT = 1e-4
"""Of the distributions, those that would give the reference's rows less often than this."""
_NAMED_AT = 0.05
_SMALLEST_P, _LARGEST = 1e-200, 1e12


@dataclass
class Detector:
    """Follows the windows of one version. value: M. drifted: whether an alarm stands, until a window is as before."""

    value: float = 0.0
    drifted: bool = False

    def take(self, p_K: NDArray[np.float64]) -> bool:
        """One more window; whether it raises the alarm."""
        e = float(np.mean(0.5 / np.sqrt(np.maximum(p_K, _SMALLEST_P)))) if len(p_K) else 1.0
        if self.drifted:
            self.drifted = e > 1
            return False
        self.value = min((self.value + 1) * e, _LARGEST) if self.value < THRESHOLD else e  # anew after an alarm
        self.drifted = self.value >= THRESHOLD
        return self.drifted


def compared(reference: Mapping[str, Histogram], columns: Mapping[str, Column]) -> list[DriftedField]:
    """Each column that both have."""
    return [_field(name, histogram, columns[name]) for name, histogram in reference.items() if name in columns]


def named(fields: list[DriftedField]) -> list[DriftedField]:
    """Those that differ, the clearest first, with a twentieth of them wrong on average.

    Source: Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57.
    """
    adjusted_K = false_discovery_control([each.p for each in fields]) if fields else []
    found = [each for each, p in zip(fields, adjusted_K, strict=True) if p <= _NAMED_AT]
    return sorted(found, key=lambda each: (each.p, -each.psi))


def worsened(reference: Histogram, right_or_error_N: Column) -> bool:
    """Whether more answers are wrong, or errors are larger, than in the reference."""
    bins_N, before_B = reference.bins(right_or_error_N), np.array(reference.counts)
    badness_B = np.arange(len(before_B)) if reference.values is None else _wrong(reference.values)
    return bool(badness_B[bins_N].mean() > (badness_B * before_B).sum() / before_B.sum())


def rarest(histogram: Histogram, column: Column, limit: int) -> NDArray[np.intp]:
    """Rows of a window in the bins that have gained most on the reference."""
    bins_N = histogram.bins(column)
    share_B, before_B = _shares(np.bincount(bins_N, minlength=histogram.size)), _shares(np.array(histogram.counts))
    return np.argsort(-(share_B / before_B)[bins_N], kind="stable")[:limit]


def _field(name: str, histogram: Histogram, column: Column) -> DriftedField:
    before_B = np.array(histogram.counts)
    now_B = np.bincount(histogram.bins(column), minlength=histogram.size)
    before, now = _shares(before_B), _shares(now_B)
    statistic, p = _homogeneity(before_B, now_B)
    psi = float(((now - before) * np.log(now / before)).sum())
    return DriftedField(field=name, statistic=statistic, p=p, psi=psi)


def _homogeneity(before_B: NDArray[np.int64], now_B: NDArray[np.int64]) -> tuple[float, float]:
    """Chi-square and p of two histograms. Rare bins are taken together; where even those are rare, the binomial test of
    them stands beside that of the others."""
    before, now = int(before_B.sum()), int(now_B.sum())
    expected_B = (before_B + now_B) * now / (before + now)
    often_B = expected_B >= _FEW
    table = np.array([before_B[often_B], now_B[often_B]])
    rare = np.array([before_B[~often_B].sum(), now_B[~often_B].sum()])
    if expected_B[~often_B].sum() >= _FEW:
        table = np.column_stack([table, rare])
        rare = np.zeros(2, int)
    statistic, p = 0.0, 1.0
    if table.shape[1] > 1 and table.sum(axis=1).all():  # else one of them has rare bins only
        found = chi2_contingency(table, correction=False)
        statistic, apart = float(found.statistic), float(chi2.isf(_RULED_OUT, found.dof)) * now / before
        p = float(ncx2.sf(statistic * (1 + now / before), found.dof, apart))
    if rare.sum():
        p = min(1.0, 2 * min(p, _binomial(int(rare[0]), int(rare[1]), before, now)))
    return statistic, p


def _binomial(some_before: int, some_now: int, before: int, now: int) -> float:
    """p of `some_now` of `now` rows. The bounds of their share are Clopper's and Pearson's (1934), Biometrika 26."""
    least = float(beta.ppf(_RULED_OUT, some_before, before - some_before + 1)) if some_before else 0.0
    most = float(beta.isf(_RULED_OUT, some_before + 1, before - some_before)) if some_before < before else 1.0
    return min(1.0, 2 * min(float(binom.sf(some_now - 1, now, most)), float(binom.cdf(some_now, now, least))))


def _wrong(values: list[str]) -> NDArray[np.float64]:
    """By bin, 1 for answers that are wrong; one of them may not be there at all, and has the bin after the values."""
    return np.array([float(value == "no") for value in values] + [float("no" not in values), 0.0])


def _shares(counts_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """With half a row more in each bin, for the index knows no empty one."""
    filled_B = counts_B + 0.5
    shares_B: NDArray[np.float64] = filled_B / filled_B.sum()
    return shares_B
