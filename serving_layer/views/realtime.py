"""Predictions from Kafka into `realtime_predictions`: transport at least once, rows effectively once.

1. Poll a batch; what is no prediction becomes a dead letter, and the broker has stored that before step 3.
2. One MySQL transaction reads the horizon and upserts the rows that it has not absorbed.
3. Only then are the Kafka offsets committed. A crash in between repeats the batch, which changes nothing.

Several writers do so side by side, each for its share of the partitions: while one waits for MySQL, another reads.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaConsumer
from pydantic import ValidationError
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.dialects.mysql import insert
from sqlalchemy.dialects.mysql.pymysql import dialect as mysql_dialect
from tenacity import Retrying, retry_if_exception_type, wait_random_exponential
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

from deeplambda.adapters import kafka, mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import NotReady, Overtaken
from deeplambda.records import topics
from deeplambda.records.dead_letters import DeadLetter
from deeplambda.records.expiry import Reader
from deeplambda.records.predictions import Prediction, json_text
from deeplambda.service.expiry import resumed
from deeplambda.service.loops import LoopStatus, in_one_line
from deeplambda.state.horizon_store import shown_horizon
from deeplambda.state.tables import REALTIME_PREDICTIONS
from serving_layer.views.reporting import Figures

GROUP = "deeplambda.views"
WRITERS = 4
_POLL_MS = 500
_LEAST_ROWS, _MOST_ROWS = 2_000, 16_000
"""Of a batch: one that was full makes the next one larger, for the lag grows when MySQL takes long for each."""
_ASK_AGAIN_S = 10.0
_IDLE_S = 1.0

# Of an event sent twice the first position counts: a row gives way to the same position (a replay) or to an earlier one
# of its partition, never to a later copy. VALUES() rather than a row alias: MariaDB has none, and PyMySQL sends many
# rows as one statement only in this form.
_WINS = "VALUES(kafka_partition) = kafka_partition AND VALUES(kafka_offset) <= kafka_offset"
_UPSERT = insert(REALTIME_PREDICTIONS).on_duplicate_key_update(
    {
        column.name: text(f"IF({_WINS}, VALUES({column.name}), {column.name})")
        for column in REALTIME_PREDICTIONS.columns
        if not column.primary_key
    }
)
_STATEMENT = str(_UPSERT.compile(dialect=mysql_dialect()))


def store(engine: Engine, predictions: Sequence[Prediction]) -> int:
    """Write predictions in one transaction; returns how many it took. Raises: NotReady.

    Left out are those that the union view shows from the batch view; one that only a newer horizon has absorbed is not
    there to be seen until the gateway shows that horizon. What was scored again only replaces a row: without one, its
    event was withdrawn meanwhile.
    """
    with mysql.mysql_errors(), engine.begin() as connection:
        horizons = {name: shown_horizon(connection, name) for name in {each.application for each in predictions}}
        stored_at = _moment(now())
        rows = [
            _row(each, stored_at)
            for each in predictions
            if not horizons[each.application].absorbed(each.kafka_partition, each.kafka_offset)
            and not (each.replayed and _has_no_row(connection, each))
        ]
        if rows:
            connection.exec_driver_sql(_STATEMENT, rows)
    return len(rows)


def _has_no_row(connection: Connection, prediction: Prediction) -> bool:
    """Whether its event has none; one that it has stays until the transaction ends."""
    table = REALTIME_PREDICTIONS.c
    of_event = (table.application == prediction.application) & (table.event_id == prediction.event_id)
    return connection.scalar(select(table.event_id).where(of_event).with_for_update()) is None


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
    following = kafka.consumer(settings, *names, group=GROUP, lossless=True, share=share, only_reads=True)
    with Publisher(settings) as publisher, closing(following) as reader:
        overtaken, asked_s = _resume(settings, reader, settings.applications), time.monotonic()
        limit = _LEAST_ROWS
        while not stop.is_set():
            with kafka.kafka_errors(settings):
                records = [record for batch in reader.poll(_POLL_MS, limit).values() for record in batch]
            if records and not _store_records(engine, publisher, records, figures, status, stop):
                break
            if records:
                with kafka.kafka_errors(settings):
                    reader.commit()
            limit = min(_MOST_ROWS, 2 * limit) if len(records) == limit else _LEAST_ROWS
            with kafka.kafka_errors(settings):
                figures.at({each: reader.position(each) for each in reader.assignment() - reader.paused()})
            if overtaken and time.monotonic() - asked_s > _ASK_AGAIN_S:
                overtaken, asked_s = _resume(settings, reader, overtaken), time.monotonic()
            if overtaken:
                status.waiting("; ".join(overtaken.values()))
            else:
                status.working()
            if not reader.assignment():
                stop.wait(_IDLE_S)


def _resume(settings: Settings, reader: KafkaConsumer, applications: Iterable[str]) -> dict[str, str]:
    """Have the applications' partitions go on after what was committed; those that were overtaken wait.

    Returns why, by application. Raises: NotReady when Kafka is away.
    """
    overtaken = {}
    for application in applications:
        topic = topics.predictions(application)
        partitions = [partition for partition in reader.assignment() if partition.topic == topic]
        if not partitions:
            continue
        with kafka.kafka_errors(settings):
            committed = {partition.partition: reader.committed(partition) for partition in partitions}
        positions = {partition: offset for partition, offset in committed.items() if offset is not None}
        try:
            starts = resumed(settings, Reader(application, "views", topic), positions)
        except Overtaken as exc:
            overtaken[application] = exc.message
            reader.pause(*partitions)
            continue
        for partition in partitions:
            reader.seek(partition, starts[partition.partition])
        reader.resume(*partitions)
    return overtaken


def _store_records(
    engine: Engine,
    publisher: Publisher,
    records: list[Any],
    figures: Figures,
    status: LoopStatus,
    stop: threading.Event,
) -> bool:
    """Store the records, trying again for as long as MySQL is away; False when told to stop before it succeeds."""
    predictions = []
    for record in records:
        try:
            predictions.append(read_prediction(record))
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
            rows = store(engine, predictions) if predictions else 0
            figures.stored(rows, predictions, took_s=time.perf_counter() - started)
            return True
    return False


def read_prediction(record: Any) -> Prediction:
    """The prediction in a Kafka record. Raises: ValueError, which says what is wrong with it."""
    if record.value is None:
        raise ValueError("the record has no value")
    prediction = Prediction.model_validate_json(record.value)
    if topics.predictions(prediction.application) != record.topic:
        raise ValueError(f"it is of application {prediction.application!r}, in topic {record.topic!r}")
    return prediction


def _dead_letter(record: Any, exc: ValueError) -> DeadLetter:
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


def _row(prediction: Prediction, stored_at: str) -> tuple[Any, ...]:
    """The values of a row in the order of the table's columns; moments as text, for PyMySQL takes long over them."""
    return (
        prediction.application,
        prediction.event_id,
        prediction.kafka_partition,
        prediction.kafka_offset,
        _moment(prediction.occurred_at),
        _moment(prediction.predicted_at),
        prediction.model_version,
        prediction.prediction,
        prediction.confidence,
        prediction.value,
        json_text(prediction.scores),
        json_text(prediction.slices),
        _moment(prediction.received_at),
        stored_at,
        prediction.replayed,
    )


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
