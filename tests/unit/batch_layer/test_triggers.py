"""When a generation is due."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from batch_layer.triggers import MAX_ATTEMPTS, Due, Known, Waits, decide, pause_s
from deeplambda.config import Settings
from deeplambda.state.generation_store import Generation

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def decided(settings: Settings, **known: Any) -> Due | Waits:
    given: dict[str, Any] = {"trained_at": NOW - HOUR, "last": None, "new_labels": 0}
    return decide(settings, Known(**given | known), NOW)


def ended(ago: timedelta) -> Generation:
    return Generation(
        application="digits",
        number=1,
        cause="labels",
        why="10,000 new labels",
        state="promoted",
        step="judge",
        attempts=1,
        started_at=NOW - ago - HOUR,
        heartbeat_at=NOW - ago,
        ended_at=NOW - ago,
        label_offsets={0: 5},
        new_labels=10,
        data=None,
        version=2,
        verdict="",
    )


def test_enough_new_labels_start_one(settings: Settings) -> None:
    due = decided(settings, new_labels=settings.generation_labels)
    assert due == Due(cause="labels", why="10,000 new labels")
    assert decided(settings, new_labels=settings.generation_labels - 1) == Waits(why="9,999 of 10,000 new labels")


def test_a_drift_waits_for_labels_that_came_since_and_says_so(settings: Settings) -> None:
    drift: dict[str, Any] = {"drift_at": NOW - timedelta(minutes=5), "new_labels": 9_000}
    waits = decided(settings, **drift, labels_since_drift=3)
    assert waits == Waits(why="drift noticed at 2026-03-01 11:55:00Z waits for labels: 3 of 500")
    due = decided(settings, **drift, labels_since_drift=500)
    assert isinstance(due, Due)
    assert due.cause == "drift"


def test_an_alarm_that_stands_after_a_generation_starts_the_next_with_ever_more_new_labels(settings: Settings) -> None:
    stands: dict[str, Any] = {"alarm_stands": True, "last": ended(ago=HOUR)}
    waits = decided(settings, **stands, fruitless=1, new_labels=999)
    assert waits == Waits(why="an alarm of drift that still stands waits for new labels: 999 of 1,000")
    due = decided(settings, **stands, fruitless=1, new_labels=1_000)
    assert due == Due(cause="drift", why="an alarm of drift still stands, 1,000 new labels")
    assert isinstance(decided(settings, **stands, fruitless=3, new_labels=3_999), Waits)
    assert isinstance(decided(settings, **stands, fruitless=3, new_labels=4_000), Due)
    drift: dict[str, Any] = {"drift_at": NOW, "labels_since_drift": 3}
    assert isinstance(decided(settings, **stands, **drift, new_labels=4_000), Waits), "a new alarm has its own labels"


def test_the_clock_starts_one_with_any_new_label_and_none_without(settings: Settings) -> None:
    old = NOW - timedelta(days=2)
    assert isinstance(decided(settings, trained_at=old, new_labels=1), Due)
    assert isinstance(decided(settings, trained_at=old, new_labels=0), Waits), "an empty week"
    never = settings.model_copy(update={"generation_every_s": 0})
    assert isinstance(decided(never, trained_at=old, new_labels=1), Waits)


def test_without_a_champion_there_is_nothing_to_train_anew(settings: Settings) -> None:
    assert decided(settings, trained_at=None, new_labels=10**6) == Waits(why="no champion yet")


def test_after_a_generation_there_is_a_pause_whatever_comes(settings: Settings) -> None:
    much: dict[str, Any] = {"new_labels": 10**6, "drift_at": NOW, "labels_since_drift": 10**6}
    assert decided(settings, last=ended(ago=HOUR / 2), **much) == Waits(why="pauses until 12:30:00Z")
    assert isinstance(decided(settings, last=ended(ago=HOUR), **much), Due)


def test_a_number_of_labels_of_0_turns_that_trigger_off(settings: Settings) -> None:
    off = settings.model_copy(update={"generation_labels": 0})
    assert decided(off, new_labels=10**6) == Waits(why="1,000,000 new labels")


def test_a_generation_that_fails_is_taken_up_ever_more_seldom() -> None:
    pauses = [pause_s(failures) for failures in range(1, MAX_ATTEMPTS + 3)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(5)
    assert pauses[MAX_ATTEMPTS - 1] == pauses[-1]
