"""Which batches the workers score, and how large a batch may be."""

import pytest

from speed_layer.stream.costs import FIRST_ROWS, MOST_ROWS, SMALL_ROWS, TARGET_S, Costs, next_limit

SLOW_DRIVER_ROW_S, SLOW_WORKER_ROW_S, SLOW_HAND_OVER_S = 300e-6, 150e-6, 4.0
"""Of a machine on which the fixed bound of 1,000 rows left a stream behind for good."""


def lag_after(costs: Costs, *, backlog: int, rate: int, batches: int) -> int:
    """Rows that wait once `batches` were scored, each of all that waited before it, on the slow machine."""
    for _ in range(batches):
        if costs.favour_driver(backlog):
            took_s = 0.05 + backlog * SLOW_DRIVER_ROW_S
            costs.driver_took(backlog, took_s)
        else:
            took_s = SLOW_HAND_OVER_S + backlog * SLOW_WORKER_ROW_S
            costs.workers_took(backlog, took_s)
        backlog = round(rate * took_s)
    return backlog


def test_a_stream_that_fell_behind_catches_up_on_a_machine_where_a_hand_over_is_dear() -> None:
    assert lag_after(Costs(), backlog=6_000, rate=500, batches=12) < 100


def test_a_large_batch_goes_to_the_workers_where_a_hand_over_is_cheap() -> None:
    costs = Costs()
    costs.workers_took(2_000, 0.3)
    assert not costs.favour_driver(20_000)


def test_no_hand_over_is_made_for_a_small_batch() -> None:
    assert Costs(hand_over_s=0.0, worker_row_s=0.0).favour_driver(SMALL_ROWS)


def test_workers_that_were_slow_once_are_tried_again() -> None:
    costs = Costs()
    costs.workers_took(20_000, 60.0)  # Python's workers were starting
    assert costs.favour_driver(20_000)
    for _ in range(200):
        costs.driver_took(20_000, 2.0)
    assert not costs.favour_driver(20_000)


def test_a_backlog_of_small_events_comes_in_larger_batches_and_one_of_large_events_in_smaller_ones() -> None:
    limits = {}
    for name, row_s in (("small", 50e-6), ("large", 20e-3)):
        limit = FIRST_ROWS
        for _ in range(20):
            limit = next_limit(limit, limit, limit * row_s)
        limits[name] = limit
    assert limits["small"] * 50e-6 == pytest.approx(TARGET_S, rel=0.1)
    assert limits["large"] == SMALL_ROWS


def test_a_batch_that_the_limit_did_not_cut_changes_nothing() -> None:
    assert next_limit(FIRST_ROWS, 10, 0.02) == FIRST_ROWS


def test_the_limit_is_bounded() -> None:
    assert next_limit(MOST_ROWS, MOST_ROWS, 0.1) == MOST_ROWS
