"""Replay: refused records are sent again, once what refused them is mended, and each of them once.

1. The dead letters that a person means are read from their topic, `CHUNK` at a time.
2. Left out are those that were sent again before, that are no events, and whose bytes are gone: of a cut letter they
   are fetched from where the record stands, for as long as Kafka retains it.
3. The record goes to the same topic, with the same key and bytes, and the broker has stored it before step 4.
4. MySQL's table `replayed_letters` marks the position of the refused record.
A crash between 3 and 4 sends some twice: the event id is the same, so that the first copy counts, in every view.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from kafka import TopicPartition
from sqlalchemy import Engine, insert, select, tuple_

from deeplambda.adapters.kafka import Publisher, consumer, end_offsets, kafka_errors
from deeplambda.adapters.mysql import mysql_errors
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.records.dead_letters import DeadLetter
from deeplambda.state.tables import REPLAYED_LETTERS

CHUNK = 200
"""Letters that are held at once; one has up to 11 MB."""

Position = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which letters are meant: those for which all that is given holds.

    reason: theirs. since, until: when they were written, the second excluded. version: of the model that served then.
    """

    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    version: int | None = None

    def takes(self, letter: DeadLetter) -> bool:
        """Whether the letter is meant."""
        return (
            (self.reason is None or letter.reason == self.reason)
            and (self.since is None or letter.dead_at >= self.since)
            and (self.until is None or letter.dead_at < self.until)
            and (self.version is None or letter.model_version == self.version)
        )


@dataclass
class Replayed:
    """sent: records that were, or would be, sent again, by reason. left_out: the others, by why."""

    sent: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def letters(settings: Settings, application: str, chosen: Filter, newest: int | None = None) -> Iterator[DeadLetter]:
    """The letters that are meant, one partition's after another's as Kafka gives them. Raises: NotReady.

    newest: so many of each partition are looked at, not all.
    """
    topic = topics.dead_letters(application)
    ends, reader = end_offsets(settings, topic), consumer(settings, topic)
    try:
        with kafka_errors(settings):
            if chosen.since is not None:  # the broker takes a letter after it was written
                asked = {partition: int(chosen.since.timestamp() * 1000) for partition in reader.assignment()}
                for partition, found in reader.offsets_for_times(asked).items():
                    reader.seek(partition, found.offset if found else ends[partition.partition])
            elif newest is not None:
                for partition, first in reader.beginning_offsets(reader.assignment()).items():
                    reader.seek(partition, max(first, ends[partition.partition] - newest))
            while any(reader.position(p) < ends[p.partition] for p in reader.assignment()):
                for records in reader.poll(timeout_ms=500, max_records=CHUNK).values():
                    found_here = (DeadLetter.model_validate_json(record.value) for record in records)
                    yield from (letter for letter in found_here if chosen.takes(letter))
    finally:
        reader.close()


def already(engine: Engine, chunk: Iterable[DeadLetter]) -> set[Position]:
    """The positions of these letters' records that were sent again before. Raises: NotReady."""
    marks = REPLAYED_LETTERS.c
    asked = [_position(letter) for letter in chunk]
    with mysql_errors(), engine.connect() as connection:
        query = select(marks.topic, marks.partition, marks.offset)
        found = connection.execute(query.where(tuple_(marks.topic, marks.partition, marks.offset).in_(asked)))
        return {(row.topic, row.partition, row.offset) for row in found}


def replay(
    settings: Settings, engine: Engine, application: str, chosen: Filter, *, who: str, dry_run: bool
) -> Replayed:
    """Send the records of the letters that are meant again; what was sent. Raises: NotReady."""
    done, found = Replayed(), letters(settings, application, chosen)
    with Publisher(settings) as publisher:
        while chunk := list(islice(found, CHUNK)):
            marked, sent = already(engine, chunk), []
            for letter in chunk:
                if why := _obstacle(application, letter, marked):
                    done.left_out[why] += 1
                    continue
                marked.add(_position(letter))  # a second letter about the same record
                value = letter.value if _whole(letter) else _fetched(settings, letter)
                if value is None and letter.value_size_bytes:
                    done.left_out["its bytes are gone"] += 1
                    continue
                done.sent[letter.reason] += 1
                if not dry_run:
                    publisher.send_record(letter.topic, letter.key, value)
                    sent.append(letter)
            if sent:
                publisher.flush()
                _mark(engine, sent, who)
    return done


def _position(letter: DeadLetter) -> Position:
    return letter.topic, letter.partition, letter.offset


def _whole(letter: DeadLetter) -> bool:
    return len(letter.value or b"") == letter.value_size_bytes


def _obstacle(application: str, letter: DeadLetter, marked: set[Position]) -> str | None:
    if _position(letter) in marked:
        return "sent again before"
    if letter.topic != topics.events(application):
        return "no event"
    return None


def _fetched(settings: Settings, letter: DeadLetter) -> bytes | None:
    """The whole value of a letter that has only its beginning; None when Kafka no longer has the record."""
    reader, place = consumer(settings, letter.topic), TopicPartition(letter.topic, letter.partition)
    try:
        with kafka_errors(settings):
            if reader.beginning_offsets([place])[place] > letter.offset:
                return None
            reader.pause(*(other for other in reader.assignment() if other != place))
            reader.seek(place, letter.offset)
            while not (records := reader.poll(timeout_ms=500, max_records=1).get(place, [])):
                pass
            return bytes(records[0].value) if records[0].offset == letter.offset else None
    finally:
        reader.close()


def _mark(engine: Engine, sent: Iterable[DeadLetter], who: str) -> None:
    columns = ("topic", "partition", "offset")
    rows = [dict(zip(columns, _position(letter), strict=True)) | {"who": who, "at": now()} for letter in sent]
    with mysql_errors(), engine.begin() as connection:
        connection.execute(insert(REPLAYED_LETTERS).prefix_with("IGNORE"), rows)
