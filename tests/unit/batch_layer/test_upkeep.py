"""By itself upkeep begins soon after a start, goes on by the clock, and says what is in its way."""

import threading
from typing import cast

import pytest
from pyspark.sql import SparkSession

from batch_layer.upkeep import FIRST_AFTER_S, keep_up
from deeplambda.config import Settings
from deeplambda.service.loops import LoopStatus


class Turns(threading.Event):
    """Lets so many turns pass without waiting for them, and tells how long each wait would have been."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.waits_s: list[float | None] = []
        self._turns = turns

    def wait(self, timeout: float | None = None) -> bool:
        self.waits_s.append(timeout)
        return len(self.waits_s) > self._turns


def kept_up(given: Settings, turns: int) -> tuple[list[float | None], LoopStatus]:
    stop, status = Turns(turns), LoopStatus()
    keep_up(cast(SparkSession, None), given, status, stop)  # no application gets as far as Spark
    return stop.waits_s, status


@pytest.mark.parametrize(("every_s", "first_s"), [(3600, FIRST_AFTER_S), (60, 60)])
def test_the_first_turn_comes_soon_after_a_start_and_the_next_ones_by_the_clock(
    settings: Settings, every_s: int, first_s: int
) -> None:
    waits_s, _ = kept_up(settings.model_copy(update={"applications": (), "maintain_every_s": every_s}), turns=2)
    assert waits_s == [first_s, every_s, every_s]


def test_a_turn_that_fails_says_why_and_the_next_one_comes(settings: Settings) -> None:
    waits_s, status = kept_up(settings.model_copy(update={"mysql_address": "127.0.0.1:1"}), turns=2)
    assert len(waits_s) == 3
    assert status.waits_for is not None
    assert "MySQL did not take the statement" in status.waits_for
