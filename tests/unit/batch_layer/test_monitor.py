"""What the monitor takes of an application's records, and whose trouble it is where that fails."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic_core import to_json

from batch_layer import monitor
from batch_layer.monitor import Watch
from batch_layer.summaries import Reference
from deeplambda.application import Event
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, NotReady
from deeplambda.state import registry
from tests.unit.batch_layer.test_gate import card


class Counted(Event):
    count: int


def record(event_id: str, **changes: Any) -> SimpleNamespace:
    value = to_json({"event_id": event_id, "occurred_at": now(), "count": 1} | changes)
    return SimpleNamespace(key=event_id.encode(), value=value, partition=0, offset=0, timestamp=0)


def test_an_event_whose_value_no_column_can_hold_is_in_no_window(settings: Settings) -> None:
    watch = Watch(settings, "counts")
    nothing = Reference(split="test", rows=1, inputs={}, predictions={}, accuracy={})
    watch._champion = monitor._Champion(version=1, event=Counted, window=3, reference=nothing)
    watch.events([record("a"), record("b", count=2**63), record("c"), record("d", count="many")])
    assert [seen.event_id for seen in watch._seen["inputs"]] == ["a", "c"]
    watch.events([record("e")])
    assert watch._seen["inputs"] == [], "a window was compared"


def test_a_champion_whose_code_does_not_import_is_named_and_its_labels_are_judged(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = card(2, 0.9)

    def broken(*_: object) -> None:
        raise ImportError("no module named 'gone'")

    monkeypatch.setattr(monitor, "mysql", SimpleNamespace(**vars(monitor.mysql) | {"engine": lambda *_: Database()}))
    monkeypatch.setattr(registry, "champion", lambda *_: serving)
    monkeypatch.setattr(monitor, "_last", lambda *_: None)
    monkeypatch.setattr(monitor, "load_code", broken)
    watch = Watch(settings, serving.application)
    watch.look()
    assert watch.trouble == (f"{serving.application}: version 2 is not watched: ImportError: no module named 'gone'")
    watch.look()
    assert watch.trouble, "until another version serves"
    monkeypatch.setattr(monitor, "_taken_up", lambda *_: (None, None))
    serving = card(3, 0.9)
    watch.look()
    assert watch.trouble is None


def test_what_fails_for_one_application_is_told_until_it_works_again(settings: Settings) -> None:
    watch, failing = Watch(settings, "counts"), True

    def turn() -> None:
        if failing:
            raise OverflowError("a number")

    watch.alone(turn)
    assert watch.trouble == "counts: OverflowError: a number"
    failing = False
    watch.alone(turn)
    assert watch.trouble is None


@pytest.mark.parametrize("error", [NotReady("Kafka"), ConfigurationError("a password")])
def test_what_others_need_as_well_ends_the_turn_before_anything_is_passed_over(
    settings: Settings, error: Exception
) -> None:
    def turn() -> None:
        raise error

    with pytest.raises(type(error)):
        Watch(settings, "counts").alone(turn)


class Database:
    """An engine whose connections nobody asks."""

    def connect(self) -> "Database":
        return self

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        pass
