"""Predictions become rows once: whatever is sent twice, replayed, broken or interrupted on the way."""

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from kafka.structs import OffsetAndMetadata
from pydantic_core import from_json
from sqlalchemy import Engine, create_engine, delete, event, func, insert, select, text, update
from sqlalchemy.exc import OperationalError

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher, consumer, create_topics, end_offsets
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.records import topics
from deeplambda.records.dead_letters import DeadLetter
from deeplambda.records.horizon import Horizon
from deeplambda.records.lifecycle import BatchViewPublished
from deeplambda.records.predictions import Prediction
from deeplambda.service.loops import Loop
from deeplambda.service.metrics import MetricPublisher
from deeplambda.state import outbox
from deeplambda.state.horizon_store import move_horizon, read_batch_view, record_shown
from deeplambda.state.tables import HORIZONS, METRICS, OUTBOX, REALTIME_PREDICTIONS, SHOWN_HORIZONS
from serving_layer.views import realtime, reporting
from serving_layer.views.reporting import Figures
from serving_layer.views.rows import of_prediction
from serving_layer.views.trim import GRACE, trim
from tests.traffic import dead_letters, eventually

LETTERS = 1_000
"""Many more than all other tests have written by then: nobody else's can be taken for them."""
BEYOND = 10**12
"""An offset that no horizon of this stack reaches."""


@pytest.fixture
def run() -> str:
    return f"views-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def publisher(stack: Settings) -> Iterator[Publisher]:
    with Publisher(stack) as made:
        yield made


def prediction(event_id: str, offset: int = BEYOND, **facts: Any) -> Prediction:
    known = {
        "application": "digits",
        "kafka_partition": 0,
        "occurred_at": now(),
        "received_at": now(),
        "predicted_at": now(),
        "model_version": 1,
        "prediction": "7",
        "confidence": 0.9,
        "inference_ms": 1.0,
        "code_version": "0" * 12,
    }
    return Prediction.model_validate(known | {"event_id": event_id, "kafka_offset": offset} | facts)


def send(publisher: Publisher, *predictions: Prediction) -> None:
    for each in predictions:
        publisher.send(topics.predictions(each.application), each.event_id, each)
    publisher.flush()


def store(engine: Engine, predictions: Iterable[Prediction]) -> int:
    return realtime.store(engine, [of_prediction(each) for each in predictions])


def rows(stack: Settings, prefix: str) -> list[Any]:
    """The real-time rows whose event id starts with `prefix`; none while MySQL is away."""
    table = REALTIME_PREDICTIONS
    query = select(table).where(table.c.event_id.startswith(prefix)).order_by(table.c.event_id)
    try:
        with mysql.engine(stack, "analyst").connect() as connection:
            return list(connection.execute(query))
    except OperationalError:
        return []


def move(engine: Engine, application: str, at: datetime, **offsets: int) -> None:
    published = BatchViewPublished(
        application=application,
        snapshot=1,
        events_snapshot=1,
        version=1,
        offsets={int(name.removeprefix("p")): offset for name, offset in offsets.items()},
        rows=0,
        duration_s=0,
        at=at,
    )
    with engine.begin() as connection:
        move_horizon(connection, published, replaces=read_batch_view(connection, application))
        connection.execute(  # it speaks of an application that is not there
            delete(OUTBOX).where(OUTBOX.c.record_key == application)
        )


def test_a_prediction_is_in_mysql_as_it_was_sent(stack: Settings, publisher: Publisher, run: str) -> None:
    sent = prediction(run, occurred_at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), prediction="ünï", confidence=None)
    send(publisher, sent)
    (row,) = eventually(lambda: rows(stack, run))
    assert row.occurred_at == sent.occurred_at
    assert (row.prediction, row.confidence, row.model_version) == ("ünï", None, 1)
    assert (row.kafka_partition, row.kafka_offset) == (0, BEYOND)
    assert row.stored_at >= row.predicted_at


@pytest.mark.parametrize("mode", ["STRICT_TRANS_TABLES", "STRICT_TRANS_TABLES,NO_BACKSLASH_ESCAPES,ANSI_QUOTES"])
def test_texts_are_in_mysql_as_they_were_sent_whatever_they_hold(stack: Settings, own_name: str, mode: str) -> None:
    texts = ["it's", '"', "\\", "\\'", "'); DELETE FROM metrics --", "%s %(x)s %%", "a\nb\x00\t", "ünï 日 💡", " x "]
    sent = [
        prediction(
            f"{own_name}-{n}", n, application=own_name, prediction=each, scores={each: n / 3}, slices={"s": each}
        )
        for n, each in enumerate(texts)
    ]
    engine = create_engine(mysql.engine(stack, "views").url, connect_args={"init_command": f"SET sql_mode = '{mode}'"})
    assert store(engine, sent) == len(texts)
    engine.dispose()
    found = rows(stack, own_name)
    assert [row.prediction for row in found] == texts
    assert [from_json(row.scores) for row in found] == [each.scores for each in sent]
    assert [from_json(row.slices) for row in found] == [each.slices for each in sent]


def test_a_prediction_is_stored_within_a_second(stack: Settings, publisher: Publisher, run: str) -> None:
    send(publisher, *(prediction(f"{run}-{n}", occurred_at=now()) for n in range(20)))
    assert eventually(lambda: len(rows(stack, run)) == 20)
    delays = sorted(row.stored_at - row.predicted_at for row in rows(stack, run))
    assert delays[10] < timedelta(seconds=1)


def test_an_event_sent_three_times_is_one_row_of_its_first_position(
    stack: Settings, publisher: Publisher, run: str
) -> None:
    for n, offset in enumerate([BEYOND + 5, BEYOND + 1, BEYOND + 9]):
        send(publisher, prediction(f"{run}-a", offset, prediction=str(n)))
    send(publisher, prediction(f"{run}-a", BEYOND + 9, prediction="9"), prediction(run))

    def found() -> list[tuple[int, str]]:
        return [(row.kafka_offset, row.prediction) for row in rows(stack, run)]

    assert eventually(lambda: found() == [(BEYOND, "7"), (BEYOND + 1, "1")]), found()


def test_a_replay_overwrites_the_row_of_its_position(stack: Settings, publisher: Publisher, run: str) -> None:
    send(publisher, prediction(run, model_version=1, prediction="1"))
    send(publisher, prediction(run, model_version=2, prediction="2", replayed=True))
    assert eventually(lambda: [row.model_version for row in rows(stack, run)] == [2])
    assert rows(stack, run)[0].prediction == "2"


def test_the_first_answer_to_an_event_stays_with_the_version_that_gave_it(stack: Settings, own_name: str) -> None:
    engine = mysql.engine(stack, "views")

    def found(*answers: tuple[int, int, bool]) -> tuple[int, int, str, bool]:
        """The row after answers, of (offset, version, replayed), one after the other."""
        event_id = f"{own_name}-{answers}"
        for offset, version, replayed in answers:
            facts = {"model_version": version, "prediction": str(version), "replayed": replayed}
            store(engine, [prediction(event_id, offset, application=own_name, **facts)])
        (row,) = [row for row in rows(stack, own_name) if row.event_id == event_id]
        return row.kafka_offset, row.model_version, row.prediction, row.replayed

    assert found((7, 1, False), (7, 2, False)) == (7, 1, "1", False), "the checkpoint was lost"
    assert found((7, 1, False), (5, 2, False)) == (5, 2, "2", False), "a copy that was sent before"
    assert found((7, 1, False), (7, 2, True), (7, 1, False)) == (7, 1, "1", False), "all records are read again"
    assert found((7, 1, False), (7, 2, True), (7, 1, False), (7, 2, True)) == (7, 2, "2", True)


def test_a_copy_in_another_partition_changes_nothing(stack: Settings, own_name: str) -> None:
    engine = mysql.engine(stack, "views")
    store(engine, [prediction(own_name, 7, application=own_name, prediction="1")])
    store(engine, [prediction(own_name, 3, application=own_name, prediction="2", kafka_partition=1)])
    (row,) = rows(stack, own_name)
    assert (row.kafka_partition, row.kafka_offset, row.prediction) == (0, 7, "1")


def test_events_scored_again_replace_their_rows_alone_and_are_looked_up_together(
    stack: Settings, own_name: str
) -> None:
    engine = create_engine(mysql.engine(stack, "views").url)
    known = [prediction(f"{own_name}-{n:02}", n, application=own_name) for n in range(0, 40, 2)]
    again = [
        prediction(f"{own_name}-{n:02}", n, application=own_name, prediction="1", replayed=True) for n in range(40)
    ]
    assert store(engine, known) == 20
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
    assert store(engine, again) == 20
    engine.dispose()
    assert [(row.kafka_offset, row.prediction) for row in rows(stack, own_name)] == [(n, "1") for n in range(0, 40, 2)]
    assert len([each for each in asked if "realtime_predictions" in each]) == 2, "looked up, and kept, all at once"


def test_what_is_no_prediction_becomes_one_dead_letter_and_stops_nothing(
    stack: Settings, publisher: Publisher, run: str
) -> None:
    topic, before = topics.predictions("digits"), end_offsets(stack, topics.dead_letters("digits"))
    good = prediction(f"{run}-good").model_dump(mode="json")
    bad = {
        "no JSON": b"this is no JSON",
        "nothing": b"",
        "NaN": b'{"confidence": NaN}',
        "another application": prediction(f"{run}-x", application="other").model_dump_json().encode(),
        "too long": prediction(f"{run}-y").model_dump_json().encode().replace(b'"7"', b'"' + b"7" * 300 + b'"'),
        "spaces": prediction(f"{run}-z").model_dump_json().encode().replace(f"{run}-z".encode(), f"{run} ".encode()),
    }
    for value in bad.values():
        publisher.send_bytes(topic, run, value)
    publisher.send(topic, f"{run}-good", good)
    publisher.flush()
    assert eventually(lambda: rows(stack, f"{run}-good"))
    letters = [each for each in dead_letters(stack, before) if each["reason"] == "malformed_prediction"]
    assert sorted(letter["value_size_bytes"] for letter in letters) == sorted(len(value) for value in bad.values())
    assert {letter["reason"] for letter in letters} == {"malformed_prediction"}
    assert {letter["topic"] for letter in letters} == {topic}
    assert len({(letter["partition"], letter["offset"]) for letter in letters}) == len(bad)


def test_rows_that_the_shown_horizon_has_absorbed_are_not_inserted(stack: Settings, own_name: str) -> None:
    show(mysql.engine(stack, "views"), own_name, p0=10, p1=0)
    move(mysql.engine(stack, "platform"), own_name, now(), p0=15, p1=4)
    batch = [prediction(f"{own_name}-{n:02}", n, application=own_name) for n in range(20)]
    batch.append(prediction(f"{own_name}-other", 3, application=own_name, kafka_partition=1))
    assert store(mysql.engine(stack, "views"), batch) == 11
    assert [row.kafka_offset for row in rows(stack, own_name)] == [*range(10, 20), 3]


def show(engine: Engine, application: str, ago: timedelta = timedelta(), **offsets: int) -> None:
    """Record, as the gateway does, that the union view shows a horizon; that it has for a while."""
    horizon = Horizon(snapshot=1, offsets={int(name.removeprefix("p")): offset for name, offset in offsets.items()})
    shown = SHOWN_HORIZONS.c
    with engine.begin() as connection:
        record_shown(connection, application, horizon)
        newest = connection.scalar(select(func.max(shown.shown_at)).where(shown.application == application))
        connection.execute(
            update(SHOWN_HORIZONS)
            .where(shown.application == application, shown.shown_at == newest)
            .values(shown_at=newest - ago)
        )


def test_only_rows_of_a_horizon_that_has_been_shown_for_long_are_trimmed(stack: Settings, own_name: str) -> None:
    views, platform = mysql.engine(stack, "views"), mysql.engine(stack, "platform")
    store(views, [prediction(f"{own_name}-{n:02}", n, application=own_name) for n in range(20)])
    move(platform, own_name, now() - 10 * GRACE, p0=10)
    assert trim(views, own_name) == 0, "the gateway has not shown it"
    show(views, own_name, p0=10)
    assert trim(views, own_name) == 0, "a query may still need them"
    show(views, own_name, GRACE, p0=10)
    assert trim(views, own_name) == 10
    assert [row.kafka_offset for row in rows(stack, own_name)] == list(range(10, 20))


def test_a_horizon_that_moves_often_is_trimmed_all_the_same(stack: Settings, own_name: str) -> None:
    views = mysql.engine(stack, "views")
    store(views, [prediction(f"{own_name}-{n:02}", n, application=own_name) for n in range(20)])
    for step in (3, 2, 1, 0):
        show(views, own_name, step * GRACE / 2, p0=5 * (4 - step))
    trim(views, own_name)
    assert [row.kafka_offset for row in rows(stack, own_name)] == list(range(10, 20))
    kept = select(SHOWN_HORIZONS.c.offsets).where(SHOWN_HORIZONS.c.application == own_name)
    with views.connect() as connection:
        assert [offsets["0"] for offsets in connection.scalars(kept)] == [10, 15, 20], "no more than is needed is kept"


SKEWED = """
import sys
from datetime import timedelta
from deeplambda import clock
true = clock.now
clock.now = lambda: true() + timedelta(hours=int(sys.argv[2]))
from deeplambda.adapters import mysql
from deeplambda.config import load_settings
from serving_layer.views.trim import trim
print(trim(mysql.engine(load_settings(), "views"), sys.argv[1]))
"""


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_trims_neither_early_nor_late(stack: Settings, own_name: str, hours: int) -> None:
    views = mysql.engine(stack, "views")
    store(views, [prediction(f"{own_name}-{n:02}", n, application=own_name) for n in range(20)])

    def trimmed() -> int:
        command = [sys.executable, "-c", SKEWED, own_name, str(hours)]
        environment = os.environ | {"DEEPLAMBDA_DATA_DIR": str(stack.data_dir)}
        return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    show(views, own_name, GRACE, p0=5)
    show(views, own_name, GRACE / 2, p0=10)
    assert trimmed() == 5
    assert [row.kafka_offset for row in rows(stack, own_name)] == list(range(5, 20))


def test_a_lock_wait_that_runs_out_is_worth_another_try(stack: Settings, own_name: str) -> None:
    engine = mysql.engine(stack, "views")
    store(engine, [prediction(own_name, application=own_name)])
    own = {"a": own_name}
    with mysql.engine(stack, "root").begin() as other:
        other.execute(text("SELECT 1 FROM realtime_predictions WHERE application = :a FOR UPDATE"), own)
        with engine.connect() as connection:
            connection.exec_driver_sql("SET innodb_lock_wait_timeout = 1")
            with pytest.raises(NotReady), mysql.mysql_errors():
                connection.execute(text("UPDATE realtime_predictions SET prediction = '1' WHERE application = :a"), own)
            connection.invalidate()
    assert store(engine, [prediction(own_name, application=own_name)]) == 1


def test_connections_cut_in_the_middle_lose_and_double_nothing(stack: Settings, publisher: Publisher, run: str) -> None:
    done = threading.Event()

    def cut() -> None:
        root = mysql.engine(stack, "root")
        while not done.wait(0.05):
            with root.connect() as connection:
                for row in connection.execute(text("SELECT id FROM information_schema.processlist WHERE user='views'")):
                    with suppress(OperationalError):  # it may be gone by itself
                        connection.exec_driver_sql(f"KILL {row.id}")

    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        for start in range(0, 2_000, 100):
            send(publisher, *(prediction(f"{run}-{n:04}", BEYOND + n) for n in range(start, start + 100)))
    finally:
        done.set()
        cutting.join()
    assert eventually(lambda: len(rows(stack, run)) >= 2_000)
    assert [row.event_id for row in rows(stack, run)] == [f"{run}-{n:04}" for n in range(2_000)]


def test_one_applications_topics_stop_no_others_view(stack: Settings, own_name: str) -> None:
    cut, gone = f"{own_name}_cut", f"{own_name}_gone"
    settings = stack.model_copy(update={"applications": (gone, cut, own_name)})
    create_topics(settings.model_copy(update={"applications": (cut, own_name)}))
    with closing(consumer(stack, topics.predictions(cut), group=realtime.GROUP)) as reader:
        reader.commit({each: OffsetAndMetadata(10, "", -1) for each in reader.assignment()})
    figures, stop = Figures(), threading.Event()
    loops = [
        Loop("realtime", partial(realtime.run, settings, figures, (0, 1)), stop),
        Loop("reporting", partial(reporting.run, settings, figures), stop),
    ]
    for loop in loops:
        loop.start()
    try:
        with Publisher(stack) as publisher:
            send(publisher, prediction(own_name, application=own_name))
        assert eventually(lambda: len(rows(stack, own_name)) == 1)
        assert eventually(lambda: all(loop.status.waits_for for loop in loops), 10)
        waits_for = [loop.status.waits_for or "" for loop in loops]
    finally:
        stop.set()
        for loop in loops:
            loop.join()
    assert f"{cut}.predictions ended before what 'views' of {cut} had read" in waits_for[0]
    assert f"no topic '{gone}.dead-letters'" in waits_for[1]


def test_what_the_outbox_holds_is_published_once_and_in_order(stack: Settings, run: str) -> None:
    before, platform = end_offsets(stack, topics.LIFECYCLE)[0], mysql.engine(stack, "platform")
    for n in range(5):
        with platform.begin() as connection:
            outbox.record(connection, topics.LIFECYCLE, run, {"type": "Test", "run": run, "n": n})
    waiting = select(OUTBOX.c.id).where(OUTBOX.c.record_key == run, OUTBOX.c.published_at.is_(None))

    def relayed() -> bool:
        with platform.connect() as connection:
            return not connection.execute(waiting).all()

    assert eventually(relayed, timeout_s=10)
    reader = consumer(stack, topics.LIFECYCLE)
    (part,) = reader.assignment()
    reader.seek(part, before)
    published = []
    while reader.position(part) < end_offsets(stack, topics.LIFECYCLE)[0]:
        published += [record for found in reader.poll(500).values() for record in found]
    reader.close()
    own = [from_json(record.value)["n"] for record in published if record.key == run.encode()]
    assert own == [0, 1, 2, 3, 4]


def test_a_rolled_back_transaction_publishes_nothing(stack: Settings, run: str) -> None:
    platform = mysql.engine(stack, "platform")
    with platform.connect() as connection:
        outbox.record(connection, topics.LIFECYCLE, run, {"type": "Test"})
        connection.rollback()
        assert connection.scalar(select(OUTBOX.c.id).where(OUTBOX.c.record_key == run)) is None


def test_metrics_are_rows_and_what_is_no_metric_is_passed_over(stack: Settings, publisher: Publisher, run: str) -> None:
    publisher.send_bytes(topics.METRICS, "test", b"no JSON")
    publisher.send_bytes(topics.METRICS, "test", b'{"layer":"x","part":"y","name":"z","value":1e999,"unit":"s"}')
    for more in ('"kafka_partition":2147483648', '"kafka_partition":-1', '"at":"0001-01-01T00:00:00+05:00"'):
        fits_no_row = f'{{"layer":"x","part":"y","name":"z","value":1,"unit":"s",{more}}}'
        publisher.send_bytes(topics.METRICS, "test", fits_no_row.encode())
    MetricPublisher(publisher, layer="serving", part="test", application="digits").publish(run, 1.5, "s")
    publisher.flush()
    query = select(METRICS).where(METRICS.c.name == run)

    def stored() -> list[Any]:
        with mysql.engine(stack, "analyst").connect() as connection:
            return list(connection.execute(query))

    (row,) = eventually(stored)
    assert (row.layer, row.part, row.application, row.value, row.unit) == ("serving", "test", "digits", 1.5, "s")


def test_dead_letters_are_counted_whichever_part_wrote_them(stack: Settings, publisher: Publisher, run: str) -> None:
    since = now()
    for offset in range(LETTERS):
        letter = DeadLetter.of_record(
            application="digits",
            reason="test",
            detail=run,
            topic=topics.events("digits"),
            partition=0,
            offset=BEYOND + offset,
            received_at=now(),
            key=None,
            value=None,
        )
        publisher.send(topics.dead_letters("digits"), letter.record_key, letter)
    publisher.flush()
    counted = select(METRICS.c.value).where(
        METRICS.c.part == "views", METRICS.c.name == "dead_letters", METRICS.c.at >= since
    )

    def letters() -> float:
        with mysql.engine(stack, "analyst").connect() as connection:
            return sum(connection.scalars(counted))

    assert eventually(lambda: letters() >= LETTERS, timeout_s=40)
    assert letters() < 2 * LETTERS, "none is counted twice"


@pytest.mark.parametrize("account", ["analyst", "queries", "reader", "views"])
def test_accounts_can_do_no_more_than_their_part_needs(stack: Settings, account: mysql.Account) -> None:
    for statement in (
        insert(HORIZONS).values(
            application="x", snapshot=1, events_snapshot=1, model_version=1, offsets={}, moved_at=now()
        ),
        delete(OUTBOX),
        text("DROP TABLE realtime_predictions"),
        text("SELECT * FROM queries" if account in ("analyst", "reader") else "DELETE FROM queries"),
        *(
            [text("SELECT * FROM promotions"), insert(OUTBOX).values(topic="digits.events")]
            if account == "queries"
            else []
        ),
    ):
        with mysql.engine(stack, account).connect() as connection, pytest.raises(OperationalError, match="denied"):
            connection.execute(statement)
