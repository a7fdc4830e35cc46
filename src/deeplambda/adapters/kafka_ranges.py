"""Records of a topic by their offsets: what a micro-batch of Spark's is made of, read without Spark."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from deeplambda.adapters.kafka import client_options, kafka_errors
from deeplambda.config import Settings
from deeplambda.errors import NotReady

CHUNK_ROWS = 500
_CHUNK_BYTES = _PARTITION_BYTES = 1024 * 1024
_FETCH_BYTES = 8 * _PARTITION_BYTES
_POLL_MS = 500
_FETCH_WAIT_MS = 10
"""What is asked for is there already. Of a broker's answers one at a time is under way, and that to the last poll may
wait for a record of partitions that are not read next."""
_SILENT_S = 30.0

Row = dict[str, Any]
"""A record as Spark's Kafka source has it: key, value, topic, partition, offset, timestamp."""


class RangeReader:
    """Reads ranges of one topic's offsets; what came beyond one is kept for the next, which usually follows it.

    For one thread. Holds CHUNK_ROWS records at once, of 9 MiB together or of one record that is larger.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        with kafka_errors(settings):
            self._consumer = KafkaConsumer(
                **client_options(settings),
                enable_auto_commit=False,
                auto_offset_reset="none",
                allow_auto_create_topics=False,
                max_poll_records=CHUNK_ROWS,
                max_partition_fetch_bytes=_PARTITION_BYTES,
                fetch_max_bytes=_FETCH_BYTES,
                fetch_max_wait_ms=_FETCH_WAIT_MS,
            )
        self._ahead: dict[TopicPartition, deque[Any]] = {}
        self._next: dict[TopicPartition, int] = {}

    def chunks(self, ranges: Mapping[int, tuple[int, int]]) -> Iterator[list[Row]]:
        """The records of each partition from the first offset up to the second, which is not among them.

        Records come from Kafka a few at a time, whichever are there first; a chunk is as many as may be held.
        Raises: NotReady when Kafka is away, or no longer has the records.
        """
        left = {TopicPartition(self._topic, partition): bounds for partition, bounds in ranges.items()}
        with kafka_errors(self._settings):
            self._go_to(left)
            heard_s = time.monotonic()
            chunk: list[Row] = []
            while left:
                taken = self._taken(left, CHUNK_ROWS - len(chunk))
                chunk += taken
                if _is_full(chunk):
                    yield chunk
                    chunk = []
                elif left and not taken:
                    for partition, records in self._consumer.poll(timeout_ms=_POLL_MS).items():
                        self._ahead[partition].extend(records)
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

    def _go_to(self, wanted: Mapping[TopicPartition, tuple[int, int]]) -> None:
        known = self._consumer.assignment()
        if added := wanted.keys() - known:
            self._consumer.assign(sorted(known | added))
        for partition, (first, _) in wanted.items():
            # Known again only once the range is read to its end: one that is broken off is read anew.
            if self._next.pop(partition, None) != first:
                self._consumer.seek(partition, first)
                self._ahead[partition] = deque()
        self._consumer.pause(*(self._consumer.assignment() - wanted.keys()))
        self._consumer.resume(*wanted)

    def _taken(self, left: dict[TopicPartition, tuple[int, int]], most: int) -> list[Row]:
        """What is here of the partitions left; those that are read to their end go from `left`."""
        rows: list[Row] = []
        for partition, (_, end) in list(left.items()):
            ahead = self._ahead[partition]
            while ahead and ahead[0].offset < end and len(rows) < most:
                rows.append(_row(ahead.popleft()))
            # The last offsets may be of a transaction's marks.
            if (ahead[0].offset if ahead else self._consumer.position(partition)) >= end:
                self._next[partition] = end
                del left[partition]
        return rows


def _is_full(chunk: list[Row]) -> bool:
    return len(chunk) >= CHUNK_ROWS or sum(len(row["value"] or b"") for row in chunk) >= _CHUNK_BYTES


def _row(record: Any) -> Row:
    return {
        "key": record.key,
        "value": record.value,
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": datetime.fromtimestamp(record.timestamp / 1e3, UTC),
    }
