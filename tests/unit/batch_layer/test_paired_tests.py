"""The statistics of the gate, against textbook figures and by simulation. Legend: N rows."""

import numpy as np
import pytest

from batch_layer.paired_tests import mcnemar, resampled


def test_mcnemar_knows_only_the_rows_that_tell_two_models_apart() -> None:
    ours_N, theirs_N = np.array([True] * 96 + [False] * 4), np.array([True] * 87 + [False] * 9 + [False] * 4)
    found = mcnemar(ours_N, theirs_N)
    assert found.value == pytest.approx(0.09)
    assert found.p_better == pytest.approx(0.5**9)
    assert found.p_worse == 1
    assert found.low is not None
    assert found.low > 0


def test_few_rows_that_agree_bound_the_difference_loosely() -> None:
    ours_N = np.ones(50, bool)
    found = mcnemar(ours_N, ours_N)
    assert (found.value, found.p_better) == (0, 1)
    assert found.low is not None
    assert found.low < -0.03


@pytest.mark.parametrize("rows", [60, 1_000])
def test_each_bound_holds_in_nineteen_of_twenty_samples(rows: int) -> None:
    random, difference, held = np.random.default_rng(3), 0.03, 0
    for _ in range(2_000):
        draw_N = random.random(rows)  # one in ten rows is right by one model alone
        found = mcnemar(draw_N < 0.9 + 0.065, (draw_N < 0.9) | (draw_N >= 1 - 0.035))
        assert found.low is not None
        held += found.low <= difference
    assert 0.94 <= held / 2_000 <= 0.985


def test_resampling_finds_what_mcnemar_finds() -> None:
    random = np.random.default_rng(5)
    theirs_N = random.random(2_000) < 0.9
    ours_N = theirs_N | (random.random(2_000) < 0.2)
    exact = mcnemar(ours_N, theirs_N)
    found = resampled(lambda chosen: float(ours_N[chosen].mean() - theirs_N[chosen].mean()), 2_000)
    assert found.value == pytest.approx(exact.value)
    assert found.low == pytest.approx(exact.low, abs=0.003)
    assert found.high == pytest.approx(exact.high, abs=0.003)
    assert found == resampled(lambda chosen: float(ours_N[chosen].mean() - theirs_N[chosen].mean()), 2_000)


def test_rows_that_do_not_determine_a_metric_bound_nothing() -> None:
    found = resampled(lambda chosen: float("nan") if len(set(chosen)) < 30 else 1.0, 30)
    assert (found.low, found.high, found.p_better, found.p_worse) == (None, None, 1, 1)


@pytest.mark.parametrize("rows", [1, 2, 10, 19])
def test_fewer_than_twenty_rows_bound_nothing_though_all_agree(rows: int) -> None:
    found = resampled(lambda chosen: float(chosen.mean() * 0 - 1), rows)
    assert (found.value, found.low, found.high, found.p_better, found.p_worse) == (-1, None, None, 1, 1)


@pytest.mark.slow
def test_of_twenty_rows_about_one_good_sample_in_twenty_looks_bad() -> None:
    random, wrong = np.random.default_rng(11), 0
    for sample in range(300):
        gain_N = random.normal(0, 1, 20)
        wrong += resampled(lambda chosen, of=gain_N: float(of[chosen].mean()), 20, seed=sample).p_worse < 0.05  # type: ignore[misc]
    assert 0.02 <= wrong / 300 <= 0.1


def test_a_difference_in_every_draw_is_surer_than_one_in_as_many() -> None:
    gain_N = np.random.default_rng(3).normal(-1, 1, 400)
    found = resampled(lambda chosen: float(gain_N[chosen].mean()), 400)
    assert found.p_worse < 0.05 / 1_000, "though there are 500 draws"
    assert found.p_better == 1
