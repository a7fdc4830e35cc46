"""Loops that run on threads of their own until they are stopped, and report their status.

A loop that fails is started again after a pause, which doubles with each failure in a row; so one that is broken for
good costs little, and one whose trouble has passed is back soon. Nothing ends silently: the status says why it fails.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deeplambda.errors import DeepLambdaError, NotReady
from deeplambda.service.heartbeat import FAILING

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
STUCK_AFTER_S = 90.0  # above the longest wait of a Kafka or MySQL client

_log = logging.getLogger(__name__)


@dataclass
class FailureBudget:
    """Failures in a row, and how long to pause after each. Times are of a monotonic clock.

    since_s: when the first of them was; None while all is well.
    """

    longest_pause_s: float = LONGEST_PAUSE_S
    failures: int = 0
    since_s: float | None = None

    def failed(self, at_s: float) -> float:
        """Count a failure; the pause in seconds before the next attempt."""
        self.since_s = at_s if self.since_s is None else self.since_s
        self.failures += 1
        # Past some doublings the longest pause is reached in any case, and 2.0**failures would overflow one day.
        return min(self.longest_pause_s, FIRST_PAUSE_S * 2.0 ** min(self.failures - 1, 30))

    def worked(self) -> None:
        """Begin anew, for an attempt got somewhere."""
        self.failures, self.since_s = 0, None

    def failing_for_s(self, at_s: float) -> float:
        """How long it has been failing; 0 while all is well."""
        return 0.0 if self.since_s is None else at_s - self.since_s


class LoopStatus:
    """The status of one loop: its own thread writes it, the thread that writes the heartbeat reads it.

    details: what the loop last reported, for the heartbeat. waits_for: why it cannot work now, None while it works.
    """

    def __init__(self, longest_pause_s: float = LONGEST_PAUSE_S) -> None:
        self.details: dict[str, Any] = {}
        self.waits_for: str | None = None
        self.budget = FailureBudget(longest_pause_s)
        self._at = time.monotonic()

    def working(self, **details: Any) -> None:
        """Report a finished turn of the loop; the loop calls this after each."""
        if self.waits_for is not None:
            _log.info("%s: at work again", threading.current_thread().name)
        self.budget.worked()
        self.details, self.waits_for, self._at = details, None, time.monotonic()

    def waiting(self, why: str) -> None:
        """Report that the loop cannot work now and will try again."""
        if self.waits_for != why:
            _log.warning("%s: %s", threading.current_thread().name, why)
        self.waits_for, self._at = why, time.monotonic()

    def alive(self) -> None:
        """Report that the loop goes on, in the middle of a long turn or after a pause."""
        self._at = time.monotonic()

    @property
    def stuck(self) -> bool:
        """True when the loop has reported nothing for longer than any of its waits may take."""
        return self._silent_s > STUCK_AFTER_S

    @property
    def state(self) -> str:
        """`running`, or `failing: ` and why, in one line."""
        if self.stuck:
            return f"{FAILING}: nothing heard of it for {self._silent_s:.0f} s"
        return "running" if self.waits_for is None else f"{FAILING}: {self.waits_for}"

    @property
    def _silent_s(self) -> float:
        return time.monotonic() - self._at


class Loop(threading.Thread):
    """Runs `work(status, stop)` on a thread of its own, and again after a pause whenever it ends before `stop` is set.

    longest_pause_s: what the pauses grow to. said: what the status says of an exception, in one line.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[LoopStatus, threading.Event], None],
        stop: threading.Event,
        *,
        longest_pause_s: float = LONGEST_PAUSE_S,
        said: Callable[[Exception], str] | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.status = LoopStatus(longest_pause_s)
        self._work, self._stop_asked, self._said = work, stop, said or in_one_line

    def run(self) -> None:
        """Work until `stop` is set; threading calls this on the new thread."""
        while not self._stop_asked.is_set():
            try:
                self._work(self.status, self._stop_asked)
                why = "it ended"
            except Exception as exc:  # whatever it is, the others and the next attempt go on
                why = self._said(exc)
                if not isinstance(exc, NotReady) and why != self.status.waits_for:
                    _log.error("%s failed", self.name, exc_info=exc)
            if self._stop_asked.is_set():
                return
            pause_s = self.status.budget.failed(time.monotonic())
            self.status.waiting(why)
            self._stop_asked.wait(pause_s)
            self.status.alive()


def stop_on_signals() -> threading.Event:
    """What SIGTERM and SIGINT set from now on; a part's main thread calls this, before it starts loops."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def in_one_line(exc: BaseException) -> str:
    """What an exception says, without its traceback."""
    message = exc.message if isinstance(exc, DeepLambdaError) else f"{type(exc).__name__}: {exc}"
    return " ".join(message.split())[:300]
