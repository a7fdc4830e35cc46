"""Records of a topic by their offsets: what a micro-batch of Spark's is made of, read without Spark."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from deeplambda.adapters.kafka import Record, assigned_options, kafka_errors, received
from deeplambda.config import Settings
from deeplambda.errors import NotReady

CHUNK_ROWS = 500
_CHUNK_BYTES = _PARTITION_BYTES = 1024 * 1024
_AHEAD_BYTES = 8 * 1024 * 1024
_POLL_S = 0.5
_FETCH_WAIT_MS = 200
_FULL_MS = 10
_SILENT_S = 30.0

Row = dict[str, Any]
"""A record as Spark's Kafka source has it: key, value, topic, partition, offset, timestamp."""


class RangeReader:
    """Reads ranges of one topic's offsets; what came beyond one is kept for the next, which usually follows it.

    For one thread. It reads on while a range is made use of: 8 MiB and one answer of the broker's wait in the client,
    and twice as much at most is kept, of each partition its share of 8 MiB and what had come with that, beside the
    CHUNK_ROWS records that it gives at once, which are of 9 MiB together or of one record that is larger.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        self._consumer = Consumer(
            assigned_options(settings, "deeplambda.ranges")  # has to be named; nothing is committed
            | {
                "enable.partition.eof": True,
                "fetch.message.max.bytes": _PARTITION_BYTES,
                "fetch.max.bytes": _AHEAD_BYTES,
                "fetch.wait.max.ms": _FETCH_WAIT_MS,
                "fetch.queue.backoff.ms": _FULL_MS,
                "queued.max.messages.kbytes": _AHEAD_BYTES // 1024,
            }
        )
        self._ahead: dict[int, deque[Record]] = {}
        self._ahead_bytes = 0
        self._reached: dict[int, int] = {}
        self._next: dict[int, int] = {}
        self._paused: set[int] = set()

    def chunks(self, ranges: Mapping[int, tuple[int, int]]) -> Iterator[list[Row]]:
        """The records of each partition from the first offset up to the second, which is not among them.

        Records come from Kafka a few at a time, whichever are there first; a chunk is as many as may be held.
        Raises: NotReady when Kafka is away, or no longer has the records.
        """
        left = dict(ranges)
        with kafka_errors(self._settings):
            self._go_to(left)
            heard_s = time.monotonic()
            chunk: list[Row] = []
            while left:
                taken = self._taken(left, CHUNK_ROWS - len(chunk))
                chunk += taken
                if _is_chunk(len(chunk), (row["value"] for row in chunk)):
                    yield chunk
                    chunk = []
                elif left and not taken:
                    self._receive(left)
                    if time.monotonic() - heard_s > _SILENT_S:
                        raise NotReady(
                            f"Kafka gives no records of {self._topic} at {left}", "see 'deeplambda logs kafka'"
                        )
                    continue
                heard_s = time.monotonic()
            if chunk:
                yield chunk

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _go_to(self, wanted: Mapping[int, tuple[int, int]]) -> None:
        # Known again only once the range is read to its end: one that is broken off is read anew.
        anew = [number for number, (first, _) in wanted.items() if self._next.pop(number, None) != first]
        self._consumer.incremental_unassign(self._places(number for number in anew if number in self._ahead))
        self._consumer.incremental_assign([TopicPartition(self._topic, number, wanted[number][0]) for number in anew])
        for number in anew:
            self._forget(number)
            self._reached[number] = wanted[number][0]
        self._consumer.resume(self._places(wanted.keys() & self._paused))
        self._paused -= wanted.keys()

    def _forget(self, number: int) -> None:
        self._ahead_bytes -= sum(map(_size_bytes, self._ahead.get(number, ())))
        self._ahead[number] = deque()

    def _places(self, numbers: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, number) for number in numbers]

    def _receive(self, left: Mapping[int, tuple[int, int]]) -> None:
        failed = None
        for message in received(self._consumer, _POLL_S, CHUNK_ROWS):
            error, record = message.error(), Record.of(message)
            if error is None:
                self._ahead[record.partition].append(record)
                self._ahead_bytes += _size_bytes(record)
                self._reached[record.partition] = record.offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:  # the last offsets may be of a transaction's marks
                self._reached[record.partition] = record.offset
            else:
                self._next.pop(record.partition, None)
                failed = error
        if failed is not None:
            raise KafkaException(failed)
        full, share = self._ahead_bytes > _AHEAD_BYTES, _AHEAD_BYTES // max(1, len(self._ahead))
        for number, ahead in self._ahead.items():
            if number in left or number in self._paused:
                continue
            if full or len(ahead) >= CHUNK_ROWS or sum(map(_size_bytes, ahead)) >= min(share, _PARTITION_BYTES):
                self._consumer.pause(self._places([number]))
                self._paused.add(number)
        # Each of very many partitions brings more than its share: what is too much is read again when it is wanted.
        for number in [number for number, ahead in self._ahead.items() if ahead and number not in left]:
            if self._ahead_bytes <= 2 * _AHEAD_BYTES:
                break
            self._forget(number)
            self._next.pop(number, None)

    def _taken(self, left: dict[int, tuple[int, int]], most: int) -> list[Row]:
        """What is here of the partitions left; those that are read to their end go from `left`."""
        rows: list[Row] = []
        for number, (_, end) in list(left.items()):
            ahead = self._ahead[number]
            while ahead and ahead[0].offset < end and len(rows) < most:
                record = ahead.popleft()
                self._ahead_bytes -= _size_bytes(record)
                rows.append(_row(record))
            if (ahead[0].offset if ahead else self._reached[number]) >= end:
                self._next[number] = end
                del left[number]
        return rows


def _is_chunk(rows: int, values: Iterable[bytes | None]) -> bool:
    return rows >= CHUNK_ROWS or sum(len(value or b"") for value in values) >= _CHUNK_BYTES


def _size_bytes(record: Record) -> int:
    return len(record.key or b"") + len(record.value or b"")


def _row(record: Record) -> Row:
    return {
        "key": record.key,
        "value": record.value,
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": datetime.fromtimestamp(record.timestamp / 1e3, UTC),
    }
