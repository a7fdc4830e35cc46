"""What a micro-batch costs in the driver and on the workers, learned from those before it.

A hand-over to workers costs the same whatever the batch's size, and much more on a slow machine than on a fast one. A
fixed number of rows above which it is made would have a stream that once fell behind stay behind: the hand-over takes
as long as the rows for the next one need to come.
"""

from dataclasses import dataclass

SMALL_ROWS = 1_000
"""A batch that no hand-over pays for, anywhere."""

_LARGE_ROWS = 5_000  # from here on a batch tells of the time for a row, below of that for the hand-over
_NEWEST = 0.3
_FORGOTTEN = 0.02

FIRST_ROWS, MOST_ROWS = 2_000, 100_000
TARGET_S = 3.0
"""How long a batch of a backlog should take: much longer than the hand-over, and soon enough over to be seen."""


@dataclass
class Costs:
    """Seconds, by the batches so far; the first values are of a machine with two cores."""

    driver_row_s: float = 100e-6
    worker_row_s: float = 50e-6
    hand_over_s: float = 0.5

    def favour_driver(self, rows: int) -> bool:
        """Whether the driver has a batch of `rows` scored no later than the workers."""
        return rows <= SMALL_ROWS or rows * self.driver_row_s <= self.hand_over_s + rows * self.worker_row_s

    def driver_took(self, rows: int, seconds: float) -> None:
        """Learn from a batch that the driver has scored."""
        if rows <= SMALL_ROWS // 2:
            return
        self.driver_row_s = _blended(self.driver_row_s, seconds / rows)
        # What is remembered of the workers fades, so that they are tried again: they may have been starting.
        self.hand_over_s *= 1 - _FORGOTTEN
        self.worker_row_s *= 1 - _FORGOTTEN

    def workers_took(self, rows: int, seconds: float) -> None:
        """Learn from a batch that the workers have scored."""
        if rows >= _LARGE_ROWS:
            self.worker_row_s = _blended(self.worker_row_s, max(0.0, seconds - self.hand_over_s) / rows)
        else:
            self.hand_over_s = _blended(self.hand_over_s, max(0.0, seconds - rows * self.worker_row_s))


def next_limit(limit: int, rows: int, seconds: float) -> int:
    """Rows that the next batch may have, after one of `rows` under `limit` took `seconds`.

    A batch that the limit did not cut says nothing of a larger one. So large events, which take longer, come in smaller
    batches.
    """
    if rows < limit // 2 and seconds < TARGET_S:
        return limit
    factor = min(2.0, max(0.5, TARGET_S / max(seconds, 1e-3)))
    return round(min(MOST_ROWS, max(SMALL_ROWS, limit * factor)))


def _blended(known: float, newest: float) -> float:
    return (1 - _NEWEST) * known + _NEWEST * newest
