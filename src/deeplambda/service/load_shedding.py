"""Load shedding: a queue that is full again and again takes only few more, until for a while nothing had to be refused.

Clients that wait for their answers make a queue no longer than there are of them, so it may be long; a burst that is
longer loses what is over the bound. A flood fills any queue and never lets it empty, so that whoever is taken waits for
all of it. There a short one gives as much throughput, and a short wait.
"""

import time

CALM_S = 1.0
"""As long as refused clients are asked to wait, at least."""
BURST_S = 0.1
"""A queue that is full after more than this, and not calm in between, is in a flood."""
LESS_LOAD = "send less at a time, or start more replicas"
"""What whoever is refused can do."""


class LoadShedder:
    """Says whom a queue refuses. most: how many may wait at any other time; few: how many in a flood."""

    def __init__(self, *, few: int, most: int) -> None:
        self.few, self.most = few, most
        self._full_at = self._calm_at = 0.0
        self._floods = False

    def refuses(self, waiting: float) -> bool:
        """Whether one more is too many beside those that wait."""
        now = time.monotonic()
        if now >= self._calm_at:
            self._full_at, self._floods = now, False
        if waiting < (self.few if self._floods else self.most):
            return False
        self._floods = now > self._full_at + BURST_S
        self._calm_at = now + CALM_S
        return True
