"""How far streams are behind what Kafka has: asked of Kafka itself, so that it is seen of a stream that hangs, too."""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from kafka import TopicPartition

from deeplambda.adapters.kafka import Consumer, consumer, kafka_errors
from deeplambda.config import Settings
from deeplambda.service.metrics import MetricPublisher

Offsets = Mapping[int, int]
"""By partition, the offset after the last record."""

MOST_PARTITIONS = 20
"""Partitions whose lag is published by themselves, the worst: a topic may have a thousand."""

BEHIND_AFTER_S = 30.0
LEAST_LAG_ROWS = 1_000
_ANSWER_MS = 5_000
_MOST_DELAY_S = 10.0
"""A stream that needs longer for what waits, at the rate at which it works, does not keep up."""


class _Look(NamedTuple):
    at_s: float
    waiting: Offsets
    done: Offsets


class Lag:
    """What waits for one stream, look by look. Times are of a monotonic clock."""

    def __init__(self) -> None:
        self.by_partition: dict[int, int] = {}
        self._looks: deque[_Look] = deque()

    @property
    def known(self) -> bool:
        """Whether the last look saw where the stream is: not before a new process has finished its first batch."""
        return bool(self.by_partition)

    @property
    def rows(self) -> int:
        """What waited at the last look."""
        return sum(self.by_partition.values())

    def looked(self, at_s: float, *, ends: Offsets, done: Offsets) -> None:
        """Take in a look. ends: of the topic; done: of what the stream has finished."""
        self.by_partition = {p: max(0, end - done[p]) for p, end in sorted(ends.items()) if p in done}
        self._looks.append(_Look(at_s, self.by_partition, {p: done[p] for p in self.by_partition}))
        while len(self._looks) > 2 and self._looks[1].at_s <= at_s - BEHIND_AFTER_S:
            self._looks.popleft()

    @property
    def behind(self) -> str | None:
        """What does not keep up says, all of it or one partition, in a line; None where all is well, or nothing is
        known yet.

        A backlog that is being worked off within BEHIND_AFTER_S is no trouble.
        """
        if not self._looks:
            return None
        known = self._looks[0].done
        of_partitions = (f"partition {p}: {why}" for p in known if (why := self._behind([p])))
        return self._behind(known) or next(of_partitions, None)

    def _behind(self, partitions: Collection[int]) -> str | None:
        first, last = self._looks[0], self._looks[-1]
        over_s = last.at_s - first.at_s
        if over_s < BEHIND_AFTER_S:
            return None
        rate = max(0.0, sum(last.done.get(p, 0) - first.done[p] for p in partitions) / over_s)
        waiting = [sum(look.waiting.get(p, 0) for p in partitions) for look in self._looks]
        if min(waiting) < max(LEAST_LAG_ROWS, rate * _MOST_DELAY_S):
            return None
        return f"{waiting[-1]:,} records wait, and {rate:,.0f} a second are worked off"


def publish_lag(metrics: MetricPublisher, lags: Collection[Lag]) -> None:
    """Publish how far a part is behind with an application, of whose topics `lags` are: rows of one partition's number
    are added up. While one of them is not known, nothing that would look as if that kept up. Raises: NotReady."""
    waiting = Counter[int]()
    for lag in lags:
        waiting.update(lag.by_partition)
    behind, all_known = any(lag.behind for lag in lags), all(lag.known for lag in lags)
    if all_known:
        metrics.publish("lag", waiting.total(), "rows")
    if behind or all_known:
        metrics.publish("behind", float(behind), "1")
    for partition, rows in waiting.most_common(MOST_PARTITIONS):
        if rows:
            metrics.publish("partition_lag", rows, "rows", kafka_partition=partition)


class TopicEnds:
    """Where topics end, partitions that were added included; for one thread."""

    def __init__(self, settings: Settings, topics: Iterable[str]) -> None:
        self._settings, self._topics = settings, sorted(set(topics))
        self._consumer: Consumer | None = None

    def ask(self) -> dict[str, dict[int, int]]:
        """By topic; one that Kafka does not have has none. Raises: NotReady; NoTopic where it has none at all."""
        with kafka_errors(self._settings):
            self._consumer = self._consumer or consumer(self._settings, *self._topics, some_do=True)
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
