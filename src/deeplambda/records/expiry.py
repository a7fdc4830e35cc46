"""Records that Kafka's retention removed before a reader came to them: what is lost, and what was given up.

The reader says so by `RecordsExpired` and waits; a person gives the records up by `RecordsSkipped`; only then does the
reader go on. Both are on `deeplambda.lifecycle`.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from deeplambda.records.lifecycle import RecordsExpired, RecordsSkipped

Told = RecordsExpired | RecordsSkipped
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


def expired_gaps(records: Iterable[Told], reader: Reader) -> list[Gap]:
    """The gaps that `reader` has told of."""
    return [gap_of(record) for record in records if isinstance(record, RecordsExpired) and reader_of(record) == reader]


def skipped_gaps(records: Iterable[Told], reader: Reader) -> list[Gap]:
    """The gaps of `reader` that were given up."""
    return [gap_of(record) for record in records if isinstance(record, RecordsSkipped) and reader_of(record) == reader]


def waiting(records: list[Told], application: str) -> list[RecordsExpired]:
    """What readers of `application` have lost and nobody has given up: the newest record for each partition."""
    newest = {
        (reader_of(record), record.partition): record
        for record in records
        if isinstance(record, RecordsExpired) and record.application == application
    }
    return [
        record
        for (reader, partition), record in newest.items()
        if gaps({partition: record.from_offset}, {partition: record.to_offset}, skipped_gaps(records, reader))
    ]


def reader_of(record: Told) -> Reader:
    """The reader that a record is about."""
    return Reader(record.application, record.reader, record.topic)


def gap_of(record: Told) -> Gap:
    """The offsets that a record is about."""
    return Gap(record.partition, record.from_offset, record.to_offset)
