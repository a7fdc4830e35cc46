"""When a stream is behind, and when it only has a backlog."""

from deeplambda.service.lag import BEHIND_AFTER_S, Lag
from deeplambda.service.loops import LoopStatus
from deeplambda.service.streams import state_of


def looks(*, lag: int, rate: int, over_s: int = 60) -> Lag:
    """Looks every five seconds at a stream that does `rate` rows a second while `lag` rows wait."""
    found = Lag()
    for at_s in range(0, over_s + 1, 5):
        found.looked(at_s, ends={0: at_s * rate + lag}, done={0: at_s * rate})
    return found


def test_a_stream_is_behind_when_what_waits_needs_longer_than_ten_seconds_all_the_time() -> None:
    assert looks(lag=6_350, rate=500).behind == "6,350 records wait, and 500 a second are worked off"


def test_a_stream_that_keeps_up_with_much_is_not_behind() -> None:
    assert looks(lag=20_000, rate=10_000).behind is None


def test_a_stream_that_stands_still_is_behind() -> None:
    found = Lag()
    for at_s in range(0, 61, 5):
        found.looked(at_s, ends={0: 500 * at_s}, done={0: 0})
    assert found.behind == "30,000 records wait, and 0 a second are worked off"


def test_a_backlog_that_is_soon_worked_off_is_no_trouble() -> None:
    found = Lag()
    for at_s in range(0, int(BEHIND_AFTER_S), 5):
        found.looked(at_s, ends={0: 200_000}, done={0: 8_000 * at_s})
    assert found.behind is None


def test_the_lag_is_known_by_partition_and_not_of_one_that_no_batch_has_had() -> None:
    found = Lag()
    found.looked(0, ends={0: 10, 1: 7, 2: 5}, done={0: 4, 1: 9})
    assert found.by_partition == {0: 6, 1: 0}


def test_what_fails_is_not_called_behind() -> None:
    status = LoopStatus()
    assert state_of(status, looks(lag=6_350, rate=500)).startswith("behind: ")
    status.waiting("the model service is away")
    assert state_of(status, looks(lag=6_350, rate=500)) == "failing: the model service is away"
