"""Wilson's interval is scipy's."""

import pytest
from scipy.stats import binomtest

from serving_layer.query_service.intervals import wilson_95


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 10_000), (9_912, 10_000), (5, 10), (10**9, 10**9)]
)
def test_it_is_scipys(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_95(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_is_known_without_trials() -> None:
    assert wilson_95(0, 0) == (0, 1)
