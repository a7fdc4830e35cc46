"""A queue that stays full is kept short while too many come."""

import pytest

from deeplambda.service import load_shedding
from deeplambda.service.load_shedding import BURST_S, CALM_S, LoadShedder


class Clock:
    """`time`, as far as a load shedder asks it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(load_shedding, "time", clock)
    return clock


@pytest.fixture
def flooded(clock: Clock) -> LoadShedder:
    shedder = LoadShedder(few=2, most=4)
    assert shedder.refuses(4)
    clock.now += 2 * BURST_S
    assert shedder.refuses(4)
    return shedder


def test_a_burst_loses_only_what_is_over_the_bound(clock: Clock) -> None:
    shedder = LoadShedder(few=2, most=4)
    assert shedder.refuses(5)
    assert shedder.refuses(4)
    clock.now += 2 * BURST_S
    assert not shedder.refuses(3)


def test_a_queue_that_stays_full_takes_few_while_it_has_to_refuse(clock: Clock, flooded: LoadShedder) -> None:
    for _ in range(10):
        clock.now += CALM_S / 2
        assert flooded.refuses(2)
        assert not flooded.refuses(1)


def test_a_queue_that_refused_nothing_for_a_while_may_be_long_again(clock: Clock, flooded: LoadShedder) -> None:
    clock.now += CALM_S
    assert not flooded.refuses(3)
