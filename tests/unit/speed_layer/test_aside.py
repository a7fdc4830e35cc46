"""What is done beside the loop waits in turns round the applications, to a bound, and no longer than it may."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry, Gauge

from deeplambda.errors import DeadlinePassed, Overloaded
from speed_layer.model_service.aside import LARGE_BYTES, WAITING_BYTES, Aside
from tests.traffic import eventually

WAIT_S, EVER = 60.0, float("inf")


class Held:
    """An `Aside` whose thread is busy until `gate` opens, and what is asked of it meanwhile."""

    def __init__(self, clients: ThreadPoolExecutor) -> None:
        self.gauge = Gauge("in_progress", "", registry=CollectorRegistry())
        self.aside, self.clients, self.gate, self.order = Aside(self.gauge), clients, threading.Event(), list[str]()
        self.asked = 0
        begun = threading.Event()
        self.ask("held", call=lambda: (begun.set(), self.gate.wait(WAIT_S)))
        assert begun.wait(WAIT_S)

    def ask(
        self, name: str, size_bytes: int = LARGE_BYTES, until: float = EVER, call: Callable[[], object] | None = None
    ) -> "Future[object]":
        """Ask for `call`, or for a note in `order`, and wait until it is known to wait."""
        made = call or (lambda: self.order.append(name))
        self.asked += 1
        future = self.clients.submit(self.aside.result, name, made, size_bytes, until)
        assert eventually(lambda: future.done() or self.gauge._value.get() == self.asked, WAIT_S, every_s=0.001)
        return future


@pytest.fixture
def held() -> Iterator[Held]:
    with ThreadPoolExecutor(32) as clients:
        held = Held(clients)
        yield held
        held.gate.set()


def test_turns_go_round_the_applications(held: Held) -> None:
    made = [held.ask(name) for name in ("a", "a", "a", "b", "b", "c")]
    held.gate.set()
    assert [each.result(WAIT_S) for each in made] == [None] * 6
    assert held.order == ["a", "b", "c", "a", "b", "a"]
    assert eventually(lambda: held.gauge._value.get() == 0, WAIT_S, every_s=0.001)


def test_past_its_bound_an_application_is_refused_at_once_and_no_other_is(held: Held) -> None:
    first = held.ask("a", WAITING_BYTES)
    with pytest.raises(Overloaded, match="wait for 'a' already"):
        held.aside.result("a", lambda: None, LARGE_BYTES, EVER)
    other = held.ask("b")
    scored = held.clients.submit(held.aside.result, "a", lambda: "kept", LARGE_BYTES, EVER, scored=True)
    assert held.aside.result("a", lambda: "small", LARGE_BYTES - 1, EVER) == "small"
    held.gate.set()
    assert (first.result(WAIT_S), other.result(WAIT_S), scored.result(WAIT_S)) == (None, None, "kept")
    assert held.aside.result("a", lambda: "room", LARGE_BYTES, EVER) == "room"


def test_what_waits_too_long_is_refused_gives_its_room_back_and_is_not_made(held: Held) -> None:
    with pytest.raises(Overloaded, match="before its turn"):
        held.aside.result("a", lambda: held.order.append("late"), WAITING_BYTES, time.monotonic() + 0.01)
    after = held.ask("a")
    held.gate.set()
    assert after.result(WAIT_S) is None
    assert held.order == ["a"]


def test_what_takes_too_long_is_not_waited_for(held: Held) -> None:
    held.gate.set()
    over = threading.Event()
    with pytest.raises(DeadlinePassed):
        held.aside.result("a", lambda: over.wait(WAIT_S), LARGE_BYTES, time.monotonic() + 0.2)
    over.set()


def test_what_is_raised_is_raised_to_whom_has_asked_and_the_thread_goes_on(held: Held) -> None:
    held.gate.set()
    with pytest.raises(ZeroDivisionError):
        held.aside.result("a", lambda: 1 / 0, LARGE_BYTES, EVER)
    assert held.aside.result("a", lambda: 7, LARGE_BYTES, EVER) == 7
