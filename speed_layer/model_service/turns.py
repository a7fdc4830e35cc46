"""Turns: as many passes at a time as there are cores, in the order in which they ask, whatever their application."""

import threading
from collections import deque
from types import TracebackType


class Turns:
    """A semaphore that is handed on: who asked first is next, and nobody who comes later is quicker.

    `threading.Semaphore` would let an application whose thread gives a permit back take it again at once, past all
    others that wait for one.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._free = at_once
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1
