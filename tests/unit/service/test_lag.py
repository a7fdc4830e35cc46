"""When a stream is behind, and when it only has a backlog."""

from deeplambda.service.lag import BEHIND_AFTER_S, MOST_PARTITIONS, Lag, publish_lag
from deeplambda.service.loops import LoopStatus
from deeplambda.service.streams import state_of
from tests.unit.service.published import Published


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


def test_one_partition_that_stands_still_is_behind_however_lively_the_others_are() -> None:
    found = Lag()
    for at_s in range(0, 61, 5):
        found.looked(at_s, ends={0: 900 * at_s, 1: 100 * at_s + 1_500}, done={0: 900 * at_s, 1: 0})
    assert found.behind == "partition 1: 7,500 records wait, and 0 a second are worked off"


def test_a_partition_that_was_just_added_is_not_behind() -> None:
    found = looks(lag=0, rate=100)
    found.looked(65, ends={0: 6_500, 1: 5_000}, done={0: 6_500, 1: 0})
    assert found.behind is None


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


def test_a_slow_stream_is_published_as_behind_long_before_its_lag_is_large() -> None:
    found = Published()
    publish_lag(found, [looks(lag=2_000, rate=100)])  # type: ignore[arg-type]
    assert found.values() == {"lag": 2_000, "behind": 1}


def test_what_keeps_up_is_published_as_not_behind_and_no_partition_is_named() -> None:
    found = Published()
    publish_lag(found, [looks(lag=0, rate=100)])  # type: ignore[arg-type]
    assert found == [("lag", 0, None), ("behind", 0, None)]


def test_what_waits_of_several_topics_is_one_lag() -> None:
    found = Published()
    publish_lag(found, [looks(lag=2_000, rate=100), looks(lag=30, rate=100)])  # type: ignore[arg-type]
    assert found == [("lag", 2_030, None), ("behind", 1, None), ("partition_lag", 2_030, 0)]


def test_of_a_stream_that_has_not_begun_no_lag_is_published_nor_of_another_beside_it() -> None:
    found, begins = Published(), Lag()
    begins.looked(0, ends={0: 7_000}, done={})
    publish_lag(found, [begins, looks(lag=0, rate=100)])  # type: ignore[arg-type]
    assert found == []
    publish_lag(found, [begins, looks(lag=2_000, rate=100)])  # type: ignore[arg-type]
    assert found == [("behind", 1, None), ("partition_lag", 2_000, 0)], "of the other, what is not well"
    found.clear()
    begins.looked(5, ends={0: 7_000}, done={0: 7_000})
    publish_lag(found, [begins])  # type: ignore[arg-type]
    assert found.values() == {"lag": 0, "behind": 0}


def test_only_partitions_that_lag_are_named_and_the_worst_of_many() -> None:
    found, lag = Published(), Lag()
    lag.looked(0, ends={partition: partition for partition in range(100)}, done=dict.fromkeys(range(100), 0))
    publish_lag(found, [lag])  # type: ignore[arg-type]
    named = [partition for name, _, partition in found if name == "partition_lag"]
    assert named == [*range(99, 99 - MOST_PARTITIONS, -1)]
