"""Records that a reader has lost, and what was given up of them.

Kafka's retention removed them before the reader came to them; or their topic ended before its position, so that they
have offsets that it has read. The reader says so by `RecordsExpired` or `TopicTruncated` and waits; a person gives the
records up by `RecordsSkipped`; only then does the reader go on. All are on `deeplambda.lifecycle`.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from deeplambda.records.lifecycle import RecordsExpired, RecordsSkipped, TopicTruncated

Lost = RecordsExpired | TopicTruncated
Told = Lost | RecordsSkipped
"""A lifecycle record about a gap."""


class Reader(NamedTuple):
    """Who reads a topic of an application. part: the name of its process, such as `archive`."""

    application: str
    part: str
    topic: str


class Gap(NamedTuple):
    """Lost records of one partition: from `from_offset` up to, but not including, `to_offset`."""

    partition: int
    from_offset: int
    to_offset: int

    def __str__(self) -> str:
        return f"{self.from_offset} to {self.to_offset - 1} of partition {self.partition}"


def gaps(positions: Mapping[int, int], first_offsets: Mapping[int, int], skipped: Iterable[Gap] = ()) -> list[Gap]:
    """What lies between a reader's positions and the first offsets that Kafka has, but for what was given up.

    positions, first_offsets: by partition; a partition that the reader has no position in has no gap.
    """
    given_up = sorted(skipped)  # in the order of their offsets, so that one pass joins what is adjacent
    found = []
    for partition, first in sorted(first_offsets.items()):
        position = positions.get(partition, first)
        for gap in given_up:
            if gap.partition == partition and gap.from_offset <= position < gap.to_offset:
                position = gap.to_offset
        if position < first:
            found.append(Gap(partition, position, first))
    return found


def cuts(positions: Mapping[int, int], ends: Mapping[int, int]) -> list[Gap]:
    """What lies between the ends of a topic's partitions and a reader's positions past them."""
    after = {partition: ends.get(partition, 0) for partition in positions}
    return [Gap(p, after[p], position) for p, position in sorted(positions.items()) if position > after[p]]


def left(gap: Gap, known: Iterable[Gap]) -> bool:
    """Whether anything of the gap is in none of those that are known."""
    return bool(gaps({gap.partition: gap.from_offset}, {gap.partition: gap.to_offset}, known))


def told_gaps(records: Iterable[Told], reader: Reader, kind: type[Told]) -> list[Gap]:
    """The gaps of `reader` that records of a kind are about."""
    return [gap_of(record) for record in records if isinstance(record, kind) and reader_of(record) == reader]


def waiting(records: list[Told], application: str) -> list[Lost]:
    """What readers of `application` have lost and nobody has given up: the newest record of each kind and partition."""
    newest = {
        (record.type, reader_of(record), record.partition): record
        for record in records
        if isinstance(record, Lost) and record.application == application
    }
    return [
        record
        for (_, reader, _), record in newest.items()
        if left(gap_of(record), told_gaps(records, reader, RecordsSkipped))
    ]


def last_told_before(records: Iterable[Told], reader: Reader, kind: type[Lost], before: datetime) -> list[Gap]:
    """The gaps of `reader` that a kind of records was last about before a time."""
    told_at = dict[Gap, datetime]()
    for record in records:
        if isinstance(record, kind) and reader_of(record) == reader:
            gap = gap_of(record)
            told_at[gap] = max(record.at, told_at.get(gap, record.at))
    return [gap for gap, at in told_at.items() if at < before]


def reader_of(record: Told) -> Reader:
    """The reader that a record is about."""
    return Reader(record.application, record.reader, record.topic)


def gap_of(record: Told) -> Gap:
    """The offsets that a record is about."""
    return Gap(record.partition, record.from_offset, record.to_offset)
