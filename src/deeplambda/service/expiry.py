"""Readers whose position Kafka no longer has: each stops and says so.

What retention took is lost, until a person gives it up. A topic that ends before the position is another one than was
read, or has lost its last records: what came since has offsets of events that are known, by which they are told apart.
"""

from collections.abc import Mapping
from contextlib import suppress

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Engine, insert

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher, consumer, end_offsets, kafka_errors, offset_ranges
from deeplambda.config import Settings
from deeplambda.errors import Overtaken, Truncated
from deeplambda.records import topics
from deeplambda.records.expiry import Gap, Reader, Told, expired_gaps, gaps, skipped_gaps, waiting
from deeplambda.records.lifecycle import RecordsExpired, RecordsSkipped
from deeplambda.state import outbox
from deeplambda.state.tables import SKIPPED_RECORDS

_TOLD: TypeAdapter[Told] = TypeAdapter(Told)


def resumed(settings: Settings, reader: Reader, positions: Mapping[int, int]) -> dict[int, int]:
    """By partition of the topic, where `reader` goes on from; called whenever it starts.

    positions: by partition, the offset of the record that it would read next; a partition without one is new to it.
    Raises: Overtaken when Kafka no longer has that record and nobody has given up what is lost; the first time, the
    lifecycle topic is told. Truncated when the topic ends before that record. NotReady when Kafka is away.
    """
    ranges = offset_ranges(settings, reader.topic)
    for partition, position in sorted(positions.items()):
        if position > (end := ranges.get(partition, (0, 0))[1]):
            raise Truncated(
                f"{reader.topic} ends at offset {end} of partition {partition}, and '{reader.part}' of "
                f"{reader.application} has read it up to {position}: it was made anew, or Kafka has lost its last "
                "records; see 'A topic that ends too early' in docs/architecture.md"
            )
    firsts = {partition: first for partition, (first, _) in ranges.items()}
    if gaps(positions, firsts):
        records = told(settings)
        if lost := gaps(positions, firsts, skipped_gaps(records, reader)):
            known = expired_gaps(records, reader)
            _tell(settings, reader, [gap for gap in lost if gap not in known])
            all_gaps = f" ({len(lost)} partitions have a gap)" if len(lost) > 1 else ""
            raise Overtaken(
                f"'{reader.part}' of {reader.application} has not read offsets {lost[0]} of {reader.topic}{all_gaps}, "
                f"and they have expired; 'deeplambda speed skip-expired {reader.application}' goes on without them"
            )
    return {partition: max(positions.get(partition, first), first) for partition, first in firsts.items()}


def expired(settings: Settings, application: str) -> list[RecordsExpired]:
    """What readers of `application` wait for, as `skip` takes it. Raises: NotReady."""
    return waiting(told(settings), application)


def skip(settings: Settings, platform: Engine, lost: list[RecordsExpired]) -> None:
    """Give up what has expired: its readers go on when they try next, within a minute. Raises: NotReady."""
    with mysql.mysql_errors(), platform.begin() as connection:
        for record in lost:
            skipped = RecordsSkipped(**record.model_dump(exclude={"type", "at"}))
            connection.execute(insert(SKIPPED_RECORDS).values(skipped.model_dump(exclude={"type"})))
            outbox.record(connection, topics.LIFECYCLE, record.application, skipped)
    with Publisher(settings) as publisher:
        while outbox.relay(platform, publisher):
            pass


def told(settings: Settings) -> list[Told]:
    """The lifecycle records about gaps that there are now, the oldest first. Raises: NotReady."""
    ends = end_offsets(settings, topics.LIFECYCLE)
    reader, found = consumer(settings, topics.LIFECYCLE), []
    try:
        with kafka_errors(settings):
            while any(reader.position(each) < ends[each.partition] for each in reader.assignment()):
                for records in reader.poll(timeout_ms=500).values():
                    for record in records:
                        with suppress(ValidationError):  # all the other kinds
                            found.append(_TOLD.validate_json(record.value))
    finally:
        reader.close()
    return found


def _tell(settings: Settings, reader: Reader, lost: list[Gap]) -> None:
    with Publisher(settings) as publisher:
        for gap in lost:
            record = RecordsExpired(
                application=reader.application, reader=reader.part, topic=reader.topic, **gap._asdict()
            )
            publisher.send(topics.LIFECYCLE, reader.application, record)
