"""Where the archive is cut into spans of time."""

import numpy as np
import pytest

from batch_layer.staged_predictions import cuts


def files(*files: tuple[int, int, int]) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """(first, last, rows) of each, as three arrays."""
    first_F, last_F, rows_F = np.array(files, np.int64).T
    return first_F, last_F, rows_F


def test_files_one_after_the_other_are_cut_where_the_rows_are() -> None:
    quiet_then_busy = files((0, 999, 100), (1000, 1099, 200), (1100, 1199, 300))
    assert cuts(*quiet_then_busy, 100) == [1000, 1050, 1100, 1133, 1166]


def test_a_large_file_is_cut_too_and_files_of_the_same_time_are_one_stream() -> None:
    assert cuts(*files((0, 99, 1000)), 250) == [25, 50, 75]
    assert cuts(*files((0, 99, 600), (0, 99, 200), (50, 99, 200)), 250) == [31, 58, 79]


def test_what_fits_is_not_cut() -> None:
    assert cuts(*files((0, 99, 1000)), 1000) == []


def test_rows_of_one_moment_stay_together() -> None:
    assert cuts(*files((7, 7, 1000)), 100) == []
    (cut,) = cuts(*files((7, 7, 1000), (9, 9, 1000)), 1000)
    assert 7 < cut <= 9


@pytest.mark.parametrize("seed", range(20))
def test_no_span_has_many_more_rows_than_it_should(seed: int) -> None:
    draw = np.random.default_rng(seed)
    first_F = draw.integers(1_700_000_000_000_000, 1_700_100_000_000_000, 50)
    last_F, rows_F = first_F + draw.integers(0, 10**10, 50), draw.integers(1, 10_000, 50)
    found = cuts(first_F, last_F, rows_F, 20_000)
    times = np.concatenate([np.linspace(a, b, n) for a, b, n in zip(first_F, last_F, rows_F, strict=True)])
    spans = np.diff([0, *np.searchsorted(np.sort(times), found), len(times)])
    assert len(spans) == -(-rows_F.sum() // 20_000)
    assert spans.max() < 20_000 * 1.02
