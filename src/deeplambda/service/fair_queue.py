"""Which of several users of one thing is next: start-time fair queueing, by the time that each has used it.

However many wait for one user, and however long its turns are, the others have as much of the time as it has, and what
they do not use is left to whoever waits. A turn's cost is counted when it has ended, so nobody has to know it before.

Source: Goyal, Vin, Cheng, Start-time Fair Queueing (SIGCOMM 1996), with equal weights.
"""

from collections import defaultdict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """What waits, by user: first come, first served for one user, by time used between users.

    A user's start is the virtual time at which its next turn would begin if all users had theirs side by side. What
    counts is who is behind: a user that was away begins where the others are, and has saved nothing up.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}
        self._starts: defaultdict[str, float] = defaultdict(float)
        self._now = 0.0  # the start of the turn that began last

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def push(self, user: str, item: T) -> None:
        """Let `item` wait for a turn of `user`."""
        if user not in self._waiting:
            self._waiting[user] = deque()
            self._starts[user] = max(self._starts[user], self._now)
        self._waiting[user].append(item)

    def pop(self) -> tuple[str, T]:
        """Whose turn it is, and the one of its items that has waited longest. Raises: ValueError when none waits."""
        user = min(self._waiting, key=self._starts.__getitem__)
        self._now = self._starts[user]
        item = self._waiting[user].popleft()
        if not self._waiting[user]:
            del self._waiting[user]
        return user, item

    def used(self, user: str, seconds: float) -> None:
        """Count the time that a turn of `user` has taken."""
        self._starts[user] += seconds
