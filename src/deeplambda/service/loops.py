"""Loops that run on threads of their own until they are stopped, and report their status."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from deeplambda.errors import NotReady

_PAUSE_S = 1.0
_STUCK_AFTER_S = 90.0  # above the longest wait of a Kafka or MySQL client

_log = logging.getLogger(__name__)


class LoopStatus:
    """The status of one loop: its own thread writes it, the thread that writes the heartbeat reads it.

    details: what the loop last reported, for the heartbeat. waits_for: why it cannot work now, None while it works.
    """

    def __init__(self) -> None:
        self.details: dict[str, Any] = {}
        self.waits_for: str | None = None
        self._at = time.monotonic()

    def working(self, **details: Any) -> None:
        """Report a finished turn of the loop; the loop calls this after each."""
        if self.waits_for is not None:
            _log.info("%s: at work again", threading.current_thread().name)
        self.details, self.waits_for, self._at = details, None, time.monotonic()

    def waiting(self, why: NotReady) -> None:
        """Report that the loop cannot work now and will try again."""
        if self.waits_for != why.message:
            _log.warning("%s: waits: %s", threading.current_thread().name, why)
        self.waits_for, self._at = why.message, time.monotonic()

    @property
    def stuck(self) -> bool:
        """True when the loop has reported nothing for longer than any of its waits may take."""
        return time.monotonic() - self._at > _STUCK_AFTER_S


class Loop(threading.Thread):
    """Runs `work(status, stop)` on a thread of its own, and again when it raises NotReady.

    failure: any other exception that ended the thread; the main thread looks for it and raises it.
    """

    def __init__(self, name: str, work: Callable[[LoopStatus, threading.Event], None], stop: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.status = LoopStatus()
        self.failure: Exception | None = None
        self._work, self._stop_asked = work, stop

    def run(self) -> None:
        """Work until `stop` is set; threading calls this on the new thread."""
        while not self._stop_asked.is_set():
            try:
                self._work(self.status, self._stop_asked)
            except NotReady as exc:
                self.status.waiting(exc)
                self._stop_asked.wait(_PAUSE_S)
            except Exception as exc:  # handed to the main thread, which ends the process with it
                self.failure = exc
                return
