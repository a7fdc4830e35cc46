"""Predictions from Kafka into `realtime_predictions`: transport at least once, rows effectively once.

1. Poll a batch; what is no prediction becomes a dead letter, and the broker has stored that before step 3.
2. One MySQL transaction reads the horizon and upserts the rows that it has not absorbed.
3. Only then are the Kafka offsets committed. A crash in between repeats the batch, which changes nothing.

Several writers do so side by side, each for its share of the partitions: while one waits for MySQL, another reads.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime

from pydantic import ValidationError
from sqlalchemy import Connection, Engine, insert, select
from tenacity import Retrying, retry_if_exception_type, wait_random_exponential
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher, Record
from deeplambda.adapters.kafka_follower import Follower
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import NoTopic, NotReady, Overtaken, Truncated
from deeplambda.records import topics
from deeplambda.records.dead_letters import DeadLetter
from deeplambda.records.expiry import Reader
from deeplambda.service.expiry import resumed
from deeplambda.service.loops import LoopStatus, in_one_line
from deeplambda.state.horizon_store import shown_horizon
from deeplambda.state.tables import LIVE_ANSWERS, REALTIME_PREDICTIONS
from serving_layer.views.reporting import Figures
from serving_layer.views.rows import COLUMNS, Row, literal, row_of

GROUP = "deeplambda.views"
WRITERS = 4
_POLL_S = 0.5
_LEAST_ROWS, _MOST_ROWS = 2_000, 16_000
"""Of a batch: one that was full makes the next one larger, for the lag grows when MySQL takes long for each."""
_LOOK_S = 10.0

# Of an event sent twice the first position counts: a row gives way to the same position or to an earlier one of its
# partition, never to a later copy. Nor does an answer give way to another version's that says of the same event to be
# the first: a stream without its checkpoint scores anew what the version before has answered. What is marked as scored
# again does so, and has gone to `live_answers` before it is replaced. VALUES() rather than a row alias: MariaDB has
# none.
_WINS = (
    "VALUES(kafka_partition) = kafka_partition AND VALUES(kafka_offset) <= kafka_offset AND "
    "(VALUES(kafka_offset) < kafka_offset OR VALUES(model_version) = model_version OR VALUES(replayed) OR replayed)"
)
_INSERT = f"INSERT INTO {REALTIME_PREDICTIONS.name} ({', '.join(COLUMNS)}, stored_at) VALUES ("
_ON_DUPLICATE = ") ON DUPLICATE KEY UPDATE " + ", ".join(
    f"{column.name} = IF({_WINS}, VALUES({column.name}), {column.name})"
    for column in sorted(REALTIME_PREDICTIONS.columns, key=lambda each: each.name != "model_version")
    if not column.primary_key
)  # the version first: each further condition sees what was set before it, and has to come out as the first one did
_STATEMENT_CHARACTERS = 1_000_000
"""Of one statement's rows: no more bytes than any server takes, which is 16 MiB."""


def store(engine: Engine, rows: Sequence[Row]) -> int:
    """Write rows in one transaction; returns how many it took. Raises: NotReady.

    Left out are those that the union view shows from the batch view; one that only a newer horizon has absorbed is not
    there to be seen until the gateway shows that horizon. What was scored again only replaces a row: without one, its
    event was withdrawn meanwhile. The answer that it replaces waits in `live_answers` for its label.
    """
    with mysql.mysql_errors(), engine.begin() as connection:
        horizons = {name: shown_horizon(connection, name) for name in {row.application for row in rows}}
        there, stored_at = _replaceable(connection, rows), literal(now())
        taken = [
            row
            for row in rows
            if not horizons[row.application].absorbed(row.kafka_partition, row.kafka_offset)
            and not (row.replayed and (row.application, row.event_id) not in there)
        ]
        _keep_answers(connection, [row for row in taken if row.replayed])
        for values in _by_size([row.values for row in taken]):
            statement = _INSERT + f",{stored_at}),(".join(values) + f",{stored_at}" + _ON_DUPLICATE
            # not by SQLAlchemy, whose errors repeat a statement: the log would get a megabyte of predictions
            connection.connection.cursor().execute(statement)
    return len(taken)


def _replaceable(connection: Connection, rows: Sequence[Row]) -> set[tuple[str, str]]:
    """Of the rows that were scored again, those whose event has one, by application and event id; it stays until the
    transaction ends."""
    table = REALTIME_PREDICTIONS.c
    return {
        (name, event_id)
        for name, ids in _ids(row for row in rows if row.replayed).items()
        for event_id in connection.scalars(
            select(table.event_id).where(table.application == name, table.event_id.in_(ids)).with_for_update()
        )
    }


def _keep_answers(connection: Connection, replaced: Iterable[Row]) -> None:
    live = REALTIME_PREDICTIONS.c
    kept = [column.name for column in LIVE_ANSWERS.columns if column.name in live]
    for name, ids in _ids(replaced).items():
        answers = select(*(live[column] for column in kept)).where(
            live.application == name, live.event_id.in_(ids), live.replayed.is_not(True)
        )
        connection.execute(insert(LIVE_ANSWERS).prefix_with("IGNORE").from_select(kept, answers))


def _ids(rows: Iterable[Row]) -> Mapping[str, list[str]]:
    """Event ids by application."""
    found = defaultdict[str, list[str]](list)
    for row in rows:
        found[row.application].append(row.event_id)
    return found


def _by_size(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in order, cut where they would be too long for one statement; each alone may be."""
    first, characters = 0, 0
    for n, each in enumerate(texts):
        characters += len(each)
        if characters > _STATEMENT_CHARACTERS and n > first:
            yield texts[first:n]
            first, characters = n, len(each)
    if texts:
        yield texts[first:]


def run(
    settings: Settings, figures: Figures, share: tuple[int, int], status: LoopStatus, stop: threading.Event
) -> None:
    """Store predictions of a share of the partitions until told to stop.

    share: which of the writers this is, from 0, and how many there are. Raises: NotReady when Kafka is away, after
    which `Loop` calls it again.
    """
    # without gap locks, so that no writer waits for another
    engine = mysql.engine(settings, "views").execution_options(isolation_level="READ COMMITTED")
    names = [topics.predictions(application) for application in settings.applications]
    known: Mapping[str, Collection[int]] = {}
    limit, look_at_s = _LEAST_ROWS, 0.0
    with Publisher(settings) as publisher, closing(Follower(settings, names, group=GROUP, share=share)) as reader:
        while not stop.is_set():
            if figures.partitions != known or time.monotonic() >= look_at_s:
                known, look_at_s = figures.partitions, time.monotonic() + _LOOK_S
                waiting = _follow(settings, reader, known)
            if records := reader.poll(_POLL_S, limit):
                if not _store_records(engine, publisher, records, figures, status, stop):
                    break
                reader.commit()
            limit = min(_MOST_ROWS, 2 * limit) if len(records) == limit else _LEAST_ROWS
            figures.at(reader.positions)
            if waiting:
                status.waiting("; ".join(waiting))
            else:
                status.working()


def _follow(settings: Settings, reader: Follower, partitions: Mapping[str, Collection[int]]) -> list[str]:
    """Have it read the topics' partitions that it does not read yet, each after what was committed, but those that
    Kafka does not have from there on: they wait.

    Returns why, for each application of which some do. Raises: NotReady when Kafka is away.
    """
    waiting = []
    for application in settings.applications:
        topic = topics.predictions(application)
        if unread := reader.unread(topic, partitions.get(topic, ())):
            committed = {partition: offset for partition, offset in unread.items() if offset is not None}
            try:
                starts = resumed(settings, Reader(application, "views", topic), committed)
            except (NoTopic, Overtaken, Truncated) as exc:
                waiting.append(exc.message)
            else:
                reader.read_from(topic, {partition: starts[partition] for partition in unread.keys() & starts.keys()})
    return waiting


def _store_records(
    engine: Engine,
    publisher: Publisher,
    records: list[Record],
    figures: Figures,
    status: LoopStatus,
    stop: threading.Event,
) -> bool:
    """Store the records, trying again for as long as MySQL is away; False when told to stop before it succeeds."""
    rows = []
    for record in records:
        try:
            rows.append(row_of(record))
        except ValueError as exc:
            letter = _dead_letter(record, exc)
            publisher.send(topics.dead_letters(letter.application), letter.record_key, letter)
    publisher.flush()
    for attempt in Retrying(
        retry=retry_if_exception_type(NotReady),
        wait=wait_random_exponential(multiplier=0.05, max=2),
        stop=stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        before_sleep=lambda state: status.waiting(in_one_line(state.outcome.exception())),  # type: ignore[union-attr, arg-type]
        retry_error_callback=lambda _: None,
    ):
        with attempt:
            started = time.perf_counter()
            stored = store(engine, rows) if rows else 0
            figures.stored(stored, rows, took_s=time.perf_counter() - started)
            return True
    return False


def _dead_letter(record: Record, exc: ValueError) -> DeadLetter:
    detail = str(exc)
    if isinstance(exc, ValidationError):
        wrong = exc.errors(include_url=False, include_input=False, include_context=False)
        detail = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'record'}: {each['msg']}" for each in wrong)
    return DeadLetter.of_record(
        application=record.topic.removesuffix(topics.predictions("")),
        reason="malformed_prediction",
        detail=detail,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        received_at=datetime.fromtimestamp(record.timestamp / 1000, UTC),
        key=record.key,
        value=record.value,
    )
