"""How far streams are behind what Kafka has: asked of Kafka itself, so that it is seen of a stream that hangs, too."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kafka import TopicPartition

from deeplambda.adapters.kafka import Consumer, consumer, kafka_errors
from deeplambda.config import Settings

Offsets = Mapping[int, int]
"""By partition, the offset after the last record."""

BEHIND_AFTER_S = 30.0
LEAST_LAG_ROWS = 1_000
_ANSWER_MS = 5_000
_MOST_DELAY_S = 10.0
"""A stream that needs longer for what waits, at the rate at which it works, does not keep up."""


class _Look(NamedTuple):
    at_s: float
    rows: int
    done: int


class Lag:
    """What waits for one stream, look by look. Times are of a monotonic clock."""

    def __init__(self) -> None:
        self.by_partition: dict[int, int] = {}
        self._looks: deque[_Look] = deque()

    @property
    def rows(self) -> int:
        """What waited at the last look."""
        return sum(self.by_partition.values())

    def looked(self, at_s: float, *, ends: Offsets, done: Offsets) -> None:
        """Take in a look. ends: of the topic; done: of what the stream has finished."""
        self.by_partition = {p: max(0, end - done[p]) for p, end in sorted(ends.items()) if p in done}
        self._looks.append(_Look(at_s, self.rows, sum(done.values())))
        while len(self._looks) > 2 and self._looks[1].at_s <= at_s - BEHIND_AFTER_S:
            self._looks.popleft()

    @property
    def behind(self) -> str | None:
        """What does not keep up says, in a line; None where all is well, or nothing is known yet.

        A backlog that is being worked off within BEHIND_AFTER_S is no trouble.
        """
        if not self._looks:
            return None
        first, last = self._looks[0], self._looks[-1]
        over_s = last.at_s - first.at_s
        if over_s < BEHIND_AFTER_S:
            return None
        rate = max(0.0, (last.done - first.done) / over_s)
        if min(look.rows for look in self._looks) < max(LEAST_LAG_ROWS, rate * _MOST_DELAY_S):
            return None
        return f"{last.rows:,} records wait, and {rate:,.0f} a second are worked off"


class TopicEnds:
    """Where topics end, partitions that were added included; for one thread."""

    def __init__(self, settings: Settings, topics: Iterable[str]) -> None:
        self._settings, self._topics = settings, sorted(set(topics))
        self._consumer: Consumer | None = None

    def ask(self) -> dict[str, dict[int, int]]:
        """By topic. Raises: NotReady when Kafka is away."""
        with kafka_errors(self._settings):
            self._consumer = self._consumer or consumer(self._settings, *self._topics)
            self._consumer.follow_partitions()
            found = self._consumer.end_offsets(self._consumer.assignment(), timeout_ms=_ANSWER_MS)
        ends: dict[str, dict[int, int]] = {topic: {} for topic in self._topics}
        each: TopicPartition
        for each, end in found.items():
            ends[each.topic][each.partition] = end
        return ends

    def close(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            self._consumer.close()
