"""Turns: as many passes at a time as there are cores, each application for as much of the time as any other."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deeplambda.service.fair_queue import FairQueue


class Turns:
    """A semaphore that is handed on to the application which has used it least.

    `threading.Semaphore` would let an application whose thread gives a permit back take it again at once, past all
    others that wait for one.
    """

    def __init__(self, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.at_once = at_once
        self._clock, self._free = clock, at_once
        self._waiting: FairQueue[threading.Lock] = FairQueue()
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, application: str) -> Iterator[None]:
        """A turn of the application, for as long as the block takes."""
        turn = threading.Lock()
        turn.acquire()
        with self._lock:
            self._waiting.push(application, turn)
            self._begin()
        turn.acquire()
        begun = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._waiting.used(application, self._clock() - begun)
                self._free += 1
                self._begin()

    def _begin(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            _, turn = self._waiting.pop()
            turn.release()
