"""Loops that fail, and how long they pause."""

import signal
import threading

import pytest

from deeplambda.errors import NotReady
from deeplambda.service.heartbeat import states_of
from deeplambda.service.loops import FailureBudget, Loop, LoopStatus, stop_on_signals
from deeplambda.service.streams import why_failed
from tests.traffic import eventually

TIME_S = 5.0


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_success() -> None:
    budget = FailureBudget(longest_pause_s=60)
    assert [budget.failed(TIME_S) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    budget.worked()
    assert budget.failed(TIME_S) == 1


def test_the_pause_stays_bounded_for_ever() -> None:
    budget = FailureBudget(failures=100_000)
    assert budget.failed(TIME_S) == 60


def test_failing_is_counted_from_the_first_failure_in_a_row() -> None:
    budget = FailureBudget()
    assert budget.failing_for_s(100) == 0
    budget.failed(at_s=100)
    budget.failed(at_s=110)
    assert budget.failing_for_s(130) == 30
    budget.worked()
    assert budget.failing_for_s(130) == 0


def test_a_loop_whatever_it_raises_is_started_again_and_says_why_meanwhile() -> None:
    calls, said, stop = [], [], threading.Event()

    def work(status: LoopStatus, stop: threading.Event) -> None:
        said.append(status.state)
        calls.append(None)
        if len(calls) <= 2:
            raise ZeroDivisionError("a bug") if len(calls) == 1 else NotReady("MySQL is away")
        status.working(rows=3)
        stop.wait()

    loop = Loop("counting", work, stop, longest_pause_s=0.01)
    loop.start()
    assert eventually(lambda: loop.status.details == {"rows": 3}, timeout_s=10, every_s=0.01)
    assert said == ["running", "failing: ZeroDivisionError: a bug", "failing: MySQL is away"]
    assert loop.status.state == "running"
    stop.set()
    loop.join(5)
    assert not loop.is_alive()


def test_of_an_applications_streams_the_worst_state_counts() -> None:
    found = states_of(
        [
            ("digits", "running"),
            ("digits", "failing: no such table"),
            ("digits", "behind: 5,000 records wait"),
            ("fashion", "running"),
            ("fashion", "behind: 5,000 records wait"),
        ]
    )
    assert found == {"digits": "failing: no such table", "fashion": "behind: 5,000 records wait"}


def test_the_reason_of_a_wrapped_error_is_the_innermost_in_one_line() -> None:
    wrapped = """[STREAM_FAILED] Query terminated with exception: An exception was raised by the Python Proxy. Message:
Traceback (most recent call last):
pyspark.errors.exceptions.captured.PythonException: An exception was thrown from the Python worker.
Traceback (most recent call last):
  File "scoring.py", line 3, in records
    raise NotReady()
{}: digits has no champion

\tat py4j.Protocol.getReturnValue(Protocol.java:476)
org.apache.spark.SparkException: Job aborted
=== Streaming Query ===
Identifier: predict digits"""
    assert why_failed(RuntimeError(wrapped.format("deeplambda.errors.NotReady"))) == "NotReady: digits has no champion"
    assert why_failed(RuntimeError(wrapped.format("KeyError"))) == "KeyError: digits has no champion"
    assert why_failed(ValueError("a\nb")) == "ValueError: a b"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_part_is_stopped_by_either_signal(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = stop_on_signals()
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.wait(TIME_S)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
