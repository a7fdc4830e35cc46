"""A group's share of some topics, read by large batches: how the real-time view keeps up with a backlog."""

from collections.abc import Iterable, Mapping, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition

from deeplambda.adapters.kafka import Record, assigned_options, kafka_errors, received
from deeplambda.config import Settings

_AHEAD_KIB = 16 * 1024
_FULL_MS = 20
_ASK_S = 10.0

Place = tuple[str, int]
"""A topic, and the number of one of its partitions."""


class Follower:
    """Reads partitions from where it is told to, and commits only by `commit()`; for one thread.

    While its records are made use of, the next ones come, of 16 MiB and one answer of the broker's together.
    share: of several that divide the partitions among them, which one it is, from 0, and how many there are.
    """

    def __init__(self, settings: Settings, topics: Sequence[str], *, group: str, share: tuple[int, int]) -> None:
        self._settings, self._topics, self._share = settings, topics, share
        self._consumer = Consumer(
            assigned_options(settings, group)
            | {"queued.max.messages.kbytes": _AHEAD_KIB, "fetch.queue.backoff.ms": _FULL_MS}
        )
        self._positions: dict[Place, int] = {}
        self._committed: dict[Place, int] = {}

    @property
    def positions(self) -> dict[Place, int]:
        """Of each partition that it reads, the offset of the next record."""
        return dict(self._positions)

    def unread(self, topic: str, partitions: Iterable[int]) -> dict[int, int | None]:
        """Those of the topic's partitions that are its share and that it does not read, each with what was committed,
        or None. Raises: NotReady.
        """
        mine, of = self._share
        place = self._topics.index(topic)
        shared = [TopicPartition(topic, number) for number in partitions if (place + number) % of == mine]
        asked = [each for each in shared if (topic, each.partition) not in self._positions]
        with kafka_errors(self._settings):
            found = self._consumer.committed(asked, timeout=_ASK_S) if asked else []
        return {each.partition: each.offset if each.offset >= 0 else None for each in found}

    def read_from(self, topic: str, starts: Mapping[int, int]) -> None:
        """Read these partitions as well, by number, each from an offset."""
        self._consumer.incremental_assign([TopicPartition(topic, number, first) for number, first in starts.items()])
        self._positions |= {(topic, number): first for number, first in starts.items()}

    def poll(self, timeout_s: float, most: int) -> list[Record]:
        """What has come, once there is something. Raises: NotReady, also when a record has expired unread."""
        with kafka_errors(self._settings):
            messages = received(self._consumer, timeout_s, most)
            for message in messages:
                if error := message.error():
                    raise KafkaException(error)
        records = [Record.of(message) for message in messages]
        self._positions |= {(each.topic, each.partition): each.offset + 1 for each in records}
        return records

    def commit(self) -> None:
        """Keep for the group how far it has come. Raises: NotReady."""
        moved = self._positions.items() - self._committed.items()
        with kafka_errors(self._settings):
            self._consumer.commit(
                offsets=[TopicPartition(topic, number, offset) for (topic, number), offset in moved], asynchronous=False
            )
        self._committed |= dict(moved)

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
