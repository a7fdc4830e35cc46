"""Wilson's and Student's intervals are scipy's."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from serving_layer.query_service.intervals import mean_95, wilson_95


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 10_000), (9_912, 10_000), (5, 10), (10**9, 10**9)]
)
def test_it_is_scipys(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_95(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_is_known_without_trials() -> None:
    assert wilson_95(0, 0) == (0, 1)


@pytest.mark.parametrize("rows", [2, 5, 1_000])
def test_a_means_is_of_its_sums_alone(rows: int) -> None:
    errors = np.random.default_rng(rows).uniform(20, 30, rows)
    expected = ttest_1samp(errors, 0).confidence_interval(0.95)
    found = mean_95(rows, errors.sum(), (errors**2).sum())
    assert found == pytest.approx((max(0, expected.low), expected.high))


def test_a_mean_error_is_not_below_zero_and_one_row_tells_no_interval() -> None:
    assert mean_95(2, 1.0, 1.0) == (0, pytest.approx(0.5 + 12.706 / 2, abs=1e-3))
    assert mean_95(3, 3.0, 3.0) == (1, 1)
    assert mean_95(1, 5.0, 25.0) is None
