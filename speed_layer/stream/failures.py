"""Failures of a canary's candidate: which of them count, and how long it is not asked after one."""

import threading
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from deeplambda.config import Settings
from deeplambda.records.lifecycle import ChallengerFailed

RESTS_S = 10.0
"""So long a candidate is not asked after it had no answer to anything."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Rows that a candidate was asked together and had no answer to. fact: what is told of it, if it counts."""

    rows: Sequence[int]
    fact: ChallengerFailed


def counted(failures: Iterable[Failure], answered: Container[int]) -> ChallengerFailed | None:
    """The first that tells of the candidate rather than of the events. answered: the rows that the champion has an
    answer to."""
    return next((each.fact for each in failures if all(row in answered for row in each.rows)), None)


class Rest:
    """The time in which one application's candidate is not asked, by any scorer of this process."""

    def __init__(self) -> None:
        self._until_s, self._lock = 0.0, threading.Lock()

    @property
    def is_on(self) -> bool:
        return time.monotonic() < self._until_s

    def begin(self) -> bool:
        """False where it is on: a scorer beside this one has met the same failure."""
        with self._lock:
            begins = not self.is_on
            self._until_s = time.monotonic() + RESTS_S
        return begins


@lru_cache(maxsize=64)
def rest_of(settings: Settings, name: str) -> Rest:
    """The one of this process."""
    return Rest()
