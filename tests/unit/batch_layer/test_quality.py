"""What the audit tells from chance, and what an expectation makes of it."""

import numpy as np
import pytest

from batch_layer.quality import FALSE_ALARMS, broken, distribution_shift, excess_error, measure, share
from deeplambda.application import MEASURES, Expect
from deeplambda.errors import ConfigurationError

TENTHS = dict.fromkeys("0123456789", 600)


def counted(labels: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> dict[str, int]:
    return {str(label): int(rows) for label, rows in zip(*np.unique(labels, return_counts=True), strict=True)}


def test_labels_of_one_distribution_show_no_shift_but_once_in_a_thousand_draws() -> None:
    randomness = np.random.default_rng(7)
    shifts = [distribution_shift(counted(randomness.integers(0, 10, 200)), TENTHS) for _ in range(2_000)]
    assert np.mean(np.array(shifts) > 0) <= 5 * FALSE_ALARMS
    assert max(shifts) < 0.15


def test_all_labels_alike_are_a_large_shift_and_another_share_of_a_rare_class_a_small_one() -> None:
    assert distribution_shift({"1": 500}, TENTHS) > 0.8
    assert distribution_shift(dict.fromkeys("01234", 100), TENTHS) > 0.5
    rare = distribution_shift({"fraud": 30, "good": 970}, {"fraud": 90, "good": 9_910})
    assert 0 < rare < 0.1
    assert distribution_shift({"yes": 100}, {"no": 100}) == pytest.approx(1, abs=0.1)


def test_a_few_rows_prove_no_shift() -> None:
    assert distribution_shift({"1": 3}, TENTHS) == 0
    assert distribution_shift({}, TENTHS) == 0
    assert distribution_shift({"1": 100}, {}) == 0


def test_mislabelled_rows_show_as_errors_and_equal_ones_do_not() -> None:
    randomness = np.random.default_rng(7)

    def wrong(share: float, rows: int = 1_000) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        return (randomness.random(rows) < share).astype(np.float64)

    assert excess_error(wrong(0.9), wrong(0.02)) > 0.7
    assert excess_error(wrong(0.3), wrong(0.02)) == pytest.approx(0.28 - 0.08, abs=0.05)
    assert np.mean([excess_error(wrong(0.1), wrong(0.1)) > 0 for _ in range(500)]) <= 5 * FALSE_ALARMS
    assert excess_error(wrong(0.0), wrong(0.5)) == 0, "new rows that are easier are no fault"
    assert excess_error(np.ones(3), np.zeros(1_000)) == 0, "three rows prove nothing"


def test_distances_are_compared_by_their_order() -> None:
    randomness = np.random.default_rng(7)
    known = randomness.exponential(1, 1_000)
    assert excess_error(known * 1e6, known) == pytest.approx(excess_error(known * 1e9, known), abs=0.01)
    assert excess_error(known + 3, known) > 0.8


def test_an_expectation_bounds_the_fields_that_it_names() -> None:
    measures = [share("nulls", 3, 10, "city"), share("nulls", 0, 10, "street"), share("leaks", 1, 10)]
    (found,) = broken([Expect("nulls", at_most=0.2)], measures)
    assert found[1] == "nulls of city is 0.3 over 10 rows, at most 0.2 is expected"
    assert broken([Expect("nulls", at_most=0.2, field="street")], measures) == []
    assert broken([Expect("nulls", at_most=0.3, field="city")], measures) == []
    assert len(broken([Expect("leaks", at_most=0)], [measure("leaks", float("nan"), 1)])) == 1


def test_an_expectation_of_what_is_not_measured_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no measure 'beauty'"):
        Expect("beauty", at_most=0)


def test_the_measures_are_of_six_dimensions() -> None:
    assert set(MEASURES.values()) == {
        *("accuracy", "completeness", "consistency", "timeliness", "accessibility", "validity"),
    }
