"""Loops that run until they are told to stop, and say honestly how they are."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from deeplambda.errors import NotReady

_PAUSE_S = 1.0
_STUCK_AFTER_S = 90.0  # above the longest wait of a Kafka or MySQL client

_log = logging.getLogger(__name__)


class Pulse:
    """What one loop says of itself; written by the loop's thread, read by the heartbeat's."""

    def __init__(self) -> None:
        self.details: dict[str, Any] = {}
        self.waits_for: str | None = None
        self._at = time.monotonic()

    def well(self, **details: Any) -> None:
        """The loop has just done a turn of its work."""
        if self.waits_for is not None:
            _log.info("%s: at work again", threading.current_thread().name)
        self.details, self.waits_for, self._at = details, None, time.monotonic()

    def waiting(self, why: NotReady) -> None:
        """The loop cannot work now and will try again."""
        if self.waits_for != why.message:
            _log.warning("%s: waits: %s", threading.current_thread().name, why)
        self.waits_for, self._at = why.message, time.monotonic()

    @property
    def stuck(self) -> bool:
        """True when the loop has said nothing for longer than any of its waits may take."""
        return time.monotonic() - self._at > _STUCK_AFTER_S


class Loop(threading.Thread):
    """`work(pulse, stop)` on a thread of its own; begun anew when it raises NotReady."""

    def __init__(self, name: str, work: Callable[[Pulse, threading.Event], None], stop: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.pulse = Pulse()
        self.failure: Exception | None = None
        self._work, self._stop_asked = work, stop

    def run(self) -> None:
        """Work until told to stop."""
        while not self._stop_asked.is_set():
            try:
                self._work(self.pulse, self._stop_asked)
            except NotReady as exc:
                self.pulse.waiting(exc)
                self._stop_asked.wait(_PAUSE_S)
            except Exception as exc:  # handed to the main thread, which ends the process with it
                self.failure = exc
                return
