"""Readers whose position Kafka no longer has: each stops and says so.

What retention took is lost, until a person gives it up. A topic that ends before the position is another one than was
read, or has lost its last records: what comes then has offsets of events that are known, by which they are told apart.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Engine, insert

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher, consumer, end_offsets, kafka_errors, offset_ranges
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import Overtaken, Truncated
from deeplambda.records import topics
from deeplambda.records.expiry import Gap, Lost, Reader, Told, cuts, gaps, last_told_before, left, told_gaps, waiting
from deeplambda.records.lifecycle import RecordsExpired, RecordsSkipped, TopicTruncated
from deeplambda.state import outbox
from deeplambda.state.tables import SKIPPED_RECORDS

_TOLD_FOR_S = 2.0
_TOLD_AGAIN_AFTER = timedelta(days=7)
"""A topic that once ended too early may have grown since, so that only the record of it tells; and the lifecycle topic
keeps no record for ever."""
_TOLD: TypeAdapter[Told] = TypeAdapter(Told)
_KINDS = [each.__name__.encode() for each in (RecordsExpired, RecordsSkipped, TopicTruncated)]
"""One of these is in every record about a gap, and in few of the topic's others."""


def resumed(
    settings: Settings,
    reader: Reader,
    positions: Mapping[int, int],
    added: int | None = None,
    planned: Mapping[int, int] = {},
) -> dict[int, int]:
    """By partition of the topic, where `reader` goes on from; called whenever it starts.

    positions: by partition, the offset of the record that it would read next; a partition without one is new to it.
    added: the position in such a partition; None: the first record that it has.
    planned: by partition, the offset up to which it had begun to read, and may have written: the topic must not have
    ended before that either, but once what is lost is given up, it is no position to wait for.
    Raises: Overtaken when Kafka no longer has that record, Truncated when the topic ends before it, or once did, and
    nobody has given up what is lost; the first time, the lifecycle topic is told. NotReady when Kafka is away, NoTopic.
    """
    ranges, records = offset_ranges(settings, reader.topic), _told_in(settings, int(time.monotonic() / _TOLD_FOR_S))
    if added is not None:
        positions = {**dict.fromkeys(ranges, added), **positions}
    skipped, cut = told_gaps(records, reader, RecordsSkipped), told_gaps(records, reader, TopicTruncated)
    ends = {partition: end for partition, (_, end) in ranges.items()}
    begun = {p: max(positions.get(p, 0), planned.get(p, 0)) for p in positions.keys() | planned.keys()}
    # At once, for the topic grows. A new leader answers when it knows all that the one before it had told (KIP-207).
    _tell(settings, reader, TopicTruncated, new := [gap for gap in cuts(begun, ends) if left(gap, [*cut, *skipped])])
    fading = last_told_before(records, reader, TopicTruncated, now() - _TOLD_AGAIN_AFTER)
    _tell(settings, reader, TopicTruncated, [gap for gap in fading if left(gap, skipped)])
    if lost := [gap for gap in (*cut, *new) if left(gap, skipped)]:
        raise Truncated(
            f"{reader.topic} ended before what '{reader.part}' of {reader.application} had read of it: it was made "
            f"anew, or Kafka lost its last records, and offsets {lost[0]}{_others(lost)} are of other records than "
            "before; see 'A topic that ends too early' in docs/architecture.md"
        )
    if found := cuts(positions, ends):
        raise Truncated(
            f"'{reader.part}' of {reader.application} goes on with offset {found[0].to_offset} of partition "
            f"{found[0].partition} of {reader.topic}, which Kafka has not given yet"
        )
    firsts = {partition: first for partition, (first, _) in ranges.items()}
    if lost := gaps(positions, firsts, skipped):
        known = told_gaps(records, reader, RecordsExpired)
        _tell(settings, reader, RecordsExpired, [gap for gap in lost if gap not in known])
        raise Overtaken(
            f"'{reader.part}' of {reader.application} has not read offsets {lost[0]} of {reader.topic}{_others(lost)}, "
            f"and they have expired; 'deeplambda speed skip-expired {reader.application}' goes on without them"
        )
    return {partition: max(positions.get(partition, first), first) for partition, first in firsts.items()}


def _others(lost: list[Gap]) -> str:
    return f" ({len(lost)} partitions have a gap)" if len(lost) > 1 else ""


def expired(settings: Settings, application: str) -> list[Lost]:
    """What readers of `application` wait for, as `skip` takes it. Raises: NotReady."""
    return waiting(told(settings), application)


def skip(settings: Settings, platform: Engine, lost: list[Lost]) -> None:
    """Give up what is lost: its readers go on when they try next, within a minute. Raises: NotReady."""
    with mysql.mysql_errors(), platform.begin() as connection:
        for record in lost:
            skipped = RecordsSkipped(**record.model_dump(exclude={"type", "at"}))
            connection.execute(insert(SKIPPED_RECORDS).values(skipped.model_dump(exclude={"type"})))
            outbox.record(connection, topics.LIFECYCLE, record.application, skipped)
    with Publisher(settings) as publisher:
        while outbox.relay(platform, publisher):
            pass
    _told_in.cache_clear()


def told(settings: Settings) -> list[Told]:
    """The lifecycle records about gaps that there are now, the oldest first. Raises: NotReady."""
    ends = end_offsets(settings, topics.LIFECYCLE)
    reader, found = consumer(settings, topics.LIFECYCLE), []
    try:
        with kafka_errors(settings):
            while any(reader.position(each) < ends[each.partition] for each in reader.assignment()):
                for records in reader.poll(timeout_ms=500).values():
                    for record in (each for each in records if any(kind in (each.value or b"") for kind in _KINDS)):
                        with suppress(ValidationError):  # all the other kinds
                            found.append(_TOLD.validate_json(record.value))
    finally:
        reader.close()
    return found


@lru_cache(maxsize=1)
def _told_in(settings: Settings, _: int) -> list[Told]:
    """As `told`, but read once in a period of time, for readers that start together."""
    return told(settings)


def _tell(settings: Settings, reader: Reader, kind: type[Lost], lost: list[Gap]) -> None:
    if not lost:
        return
    with Publisher(settings) as publisher:
        for gap in lost:
            record = kind(application=reader.application, reader=reader.part, topic=reader.topic, **gap._asdict())
            publisher.send(topics.LIFECYCLE, reader.application, record)
    _told_in.cache_clear()
