"""Load shedding: a queue that was full takes only few more, until for a while nothing had to be refused.

Clients that wait for their answers make a queue no longer than there are of them, so it may be long. A flood fills any
queue and never lets it empty, so that whoever is taken waits for all of it. There a short one gives as much throughput,
and a short wait.
"""

import time

CALM_S = 1.0
"""As long as refused clients are asked to wait, at least."""


class LoadShedder:
    """Says whom a queue refuses. most: how many may wait at any other time; few: how many while too many come."""

    def __init__(self, *, few: int, most: int) -> None:
        self.few, self.most = few, most
        self._calm_at = 0.0

    def refuses(self, waiting: int) -> bool:
        """Whether one more is too many beside those that wait."""
        now = time.monotonic()
        if waiting < (self.few if now < self._calm_at else self.most):
            return False
        self._calm_at = now + CALM_S
        return True
