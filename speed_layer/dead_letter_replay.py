"""Replay: refused records are sent again, once what refused them is mended, and each of them once.

1. The dead letters that a person means are read from their topic, `CHUNK` at a time.
2. Left out are those that were sent again before, that were refused again, that no replay mends, that are no events,
   and whose bytes are gone: of a cut letter they are fetched from where the record stands, for as long as Kafka retains
   it.
3. The record goes to the same topic, with the same key and bytes, and the broker has stored it before step 4.
4. MySQL's table `replayed_letters` marks the position of the refused record, and that of its copy: a letter about this
   one is of an event that was refused again.
A crash between 3 and 4 sends some twice: the event id is the same, so that the first copy counts, in every view.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from kafka import TopicPartition
from sqlalchemy import Engine, delete, insert, select, tuple_

from deeplambda.adapters.kafka import Publisher, consumer, end_offsets, kafka_errors, kafka_remedy
from deeplambda.adapters.mysql import mysql_errors
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.records import topics
from deeplambda.records.dead_letters import DeadLetter
from deeplambda.records.decoding import Reason
from deeplambda.state.tables import REPLAYED_LETTERS

CHUNK, CHUNK_BYTES = 200, 32 * 1024 * 1024
"""Letters that are held at once, and the bytes of their events together, of which one alone may have more."""

UNMENDED = frozenset({Reason.NOT_JSON, Reason.MISSING_KEY, Reason.KEY_MISMATCH})
"""What key and bytes themselves are refused for: they are the same when they are sent again."""

Position = tuple[str, int, int]
"""Topic, partition, offset."""

_PLACE = (REPLAYED_LETTERS.c.topic, REPLAYED_LETTERS.c.partition, REPLAYED_LETTERS.c.offset)


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
                at_ms = max(0, int(chosen.since.timestamp() * 1000))
                for partition, found in reader.offsets_for_times(dict.fromkeys(reader.assignment(), at_ms)).items():
                    reader.seek(partition, found.offset if found else ends.get(partition.partition, 0))
            elif newest is not None:
                for partition, first in reader.beginning_offsets(reader.assignment()).items():
                    reader.seek(partition, max(first, ends.get(partition.partition, 0) - newest))
            while any(reader.position(p) < ends.get(p.partition, 0) for p in reader.assignment()):
                for partition, records in reader.poll(timeout_ms=500, max_records=CHUNK).items():
                    # what came since may be of what this sends again
                    known = (record for record in records if record.offset < ends.get(partition.partition, 0))
                    found_here = (DeadLetter.model_validate_json(record.value) for record in known)
                    yield from (letter for letter in found_here if chosen.takes(letter))
    finally:
        reader.close()


def already(engine: Engine, chunk: Iterable[DeadLetter]) -> dict[Position, bool]:
    """The positions of these letters' records that were sent again before, and those of copies that were sent, which
    are True. Raises: NotReady."""
    marks = REPLAYED_LETTERS.c
    with mysql_errors(), engine.connect() as connection:
        query = select(*_PLACE, marks.is_copy).where(tuple_(*_PLACE).in_([_position(letter) for letter in chunk]))
        return {(row.topic, row.partition, row.offset): bool(row.is_copy) for row in connection.execute(query)}


def replay(
    settings: Settings,
    engine: Engine,
    application: str,
    chosen: Filter,
    *,
    who: str,
    dry_run: bool,
    again: bool = False,
) -> Replayed:
    """Send the records of the letters that are meant again; what was sent. Raises: NotReady.

    again: also those that were refused again after they had been sent.
    """
    done = Replayed()
    with Publisher(settings, reports=True) as publisher:
        for chunk in _chunks(letters(settings, application, chosen)):
            marked, sent = already(engine, chunk), []
            for letter in chunk:
                if why := _obstacle(application, letter, marked, chosen, again=again):
                    done.left_out[why] += 1
                    continue
                marked[_position(letter)] = False  # a second letter about the same record
                value = letter.value if _whole(letter) else _fetched(settings, letter)
                if value is None and letter.value_size_bytes:
                    done.left_out["its bytes are gone"] += 1
                    continue
                done.sent[letter.reason] += 1
                sent.append((letter, value))
            if sent and not dry_run:
                _send(settings, publisher, engine, sent, who)
    return done


def _chunks(found: Iterable[DeadLetter]) -> Iterator[list[DeadLetter]]:
    chunk, size_bytes = list[DeadLetter](), 0
    for letter in found:
        size_bytes += letter.value_size_bytes
        if chunk and (len(chunk) == CHUNK or size_bytes > CHUNK_BYTES):
            yield chunk
            chunk, size_bytes = [], letter.value_size_bytes
        chunk.append(letter)
    if chunk:
        yield chunk


def _position(letter: DeadLetter) -> Position:
    return letter.topic, letter.partition, letter.offset


def _whole(letter: DeadLetter) -> bool:
    return len(letter.value or b"") == letter.value_size_bytes


def _obstacle(
    application: str, letter: DeadLetter, marked: Mapping[Position, bool], chosen: Filter, *, again: bool
) -> str | None:
    is_copy = marked.get(_position(letter))
    if is_copy is False:
        return "sent again before"
    if is_copy and not again:
        return "refused again: --again sends them"
    if letter.topic != topics.events(application):
        return "no event"
    if letter.reason in UNMENDED and chosen.reason is None:
        return f"{letter.reason}, which sending again does not mend: --reason {letter.reason} does so all the same"
    return None


def _send(
    settings: Settings, publisher: Publisher, engine: Engine, chunk: list[tuple[DeadLetter, bytes | None]], who: str
) -> None:
    became = publisher.send_each([(letter.topic, letter.key, value) for letter, value in chunk])
    stored = [(letter, sent) for (letter, _), sent in zip(chunk, became, strict=True) if sent.error is None]
    marks = {_position(letter): False for letter, _ in stored}
    marks |= {(letter.topic, sent.partition, sent.offset): True for letter, sent in stored}
    if marks:
        _mark(engine, marks, who)
    if failed := [sent.error for sent in became if sent.error is not None]:
        raise NotReady(f"Kafka did not store {len(failed)} events: {failed[0]}", kafka_remedy(settings))


def _fetched(settings: Settings, letter: DeadLetter) -> bytes | None:
    """The whole value of a letter that has only its beginning; None when Kafka no longer has the record."""
    reader, place = consumer(settings, letter.topic), TopicPartition(letter.topic, letter.partition)
    try:
        with kafka_errors(settings):
            if place not in reader.assignment():
                return None
            if not reader.beginning_offsets([place])[place] <= letter.offset < reader.end_offsets([place])[place]:
                return None  # it has expired, or the topic was made anew
            reader.pause(*(other for other in reader.assignment() if other != place))
            reader.seek(place, letter.offset)
            while not (records := reader.poll(timeout_ms=500, max_records=1).get(place, [])):
                pass
            value = bytes(records[0].value or b"")
            is_it = records[0].offset == letter.offset and len(value) == letter.value_size_bytes
            return value if is_it and value.startswith(letter.value or b"") else None
    finally:
        reader.close()


def _mark(engine: Engine, marks: Mapping[Position, bool], who: str) -> None:
    names = ("topic", "partition", "offset")
    rows = [dict(zip(names, place, strict=True)) | {"is_copy": copy, "who": who} for place, copy in marks.items()]
    with mysql_errors(), engine.begin() as connection:
        connection.execute(delete(REPLAYED_LETTERS).where(tuple_(*_PLACE).in_(list(marks))))  # once copies themselves
        connection.execute(insert(REPLAYED_LETTERS), [row | {"at": now()} for row in rows])
