"""The monitor through real Kafka: windows are kept, a change of what events are like is told with its evidence, and
live accuracy is of what the stream answered."""

import threading
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from pydantic_core import to_json
from pyspark.sql import Row
from sqlalchemy import insert, select

from batch_layer.drift import Detector
from batch_layer.gate import promote
from batch_layer.monitor import _last, watch
from batch_layer.news import _alarm_stands
from batch_layer.publish import publish_run
from batch_layer.withdrawals import hide
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher, create_topics
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.loading import PackedApplication
from deeplambda.records import topics
from deeplambda.records.predictions import Prediction
from deeplambda.service.loops import LoopStatus
from deeplambda.state.tables import DRIFT_WINDOWS, LIVE_ANSWERS
from serving_layer.query_service.statistics import statistics
from serving_layer.views.realtime import store
from serving_layer.views.rows import of_prediction
from serving_layer.views.trim import GRACE, trim
from tests.integration.blobs import CENTRES, lifecycle, prepared_data_set, train_blobs
from tests.integration.test_views import prediction, show
from tests.traffic import eventually
from tests.unit.batch_layer.test_gate import card

WINDOW = 200


class Monitor:
    """Watches until it is stopped, and goes on when it is started again."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.start()

    def start(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=watch, args=(self.settings, LoopStatus(), self._stop))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def monitor(stack: Settings, application: PackedApplication) -> Iterator[Monitor]:
    """Of the module's application, whose version 1 serves."""
    own = stack.model_copy(update={"applications": (application.name,)})
    create_topics(own)
    trained = train_blobs(stack, application, prepared_data_set(stack, application.name))
    promote(stack, application, publish_run(stack, application, trained), force=True)
    running = Monitor(own)
    yield running
    running.stop()


@pytest.fixture
def watched(monitor: Monitor) -> Settings:
    return monitor.settings


def send(settings: Settings, first: int, rows: int, shift: float = 0.0) -> None:
    """Events like the test rows, moved by `shift`; of each, the prediction that it is of class 0, and a label that says
    so too as long as nothing is moved."""
    (name,), random = settings.applications, np.random.default_rng(first)
    points = CENTRES[random.integers(0, 3, rows)] + random.normal(0, 0.5, (rows, 4)) + shift
    with Publisher(settings) as publisher:
        for n, point in enumerate(points, start=first):
            event_id = f"event-{n}"
            event = {"event_id": event_id, "occurred_at": now(), "point": point.tolist()}
            publisher.send_bytes(topics.events(name), event_id, to_json(event))


def windows(settings: Settings, what: str) -> list[bool]:
    """Of the application's windows, the oldest first, whether an alarm stands."""
    table = DRIFT_WINDOWS.c
    query = select(table.drifted).where(table.application == settings.applications[0], table.what == what)
    with mysql.engine(settings, "analyst").connect() as connection:
        return list(connection.scalars(query.order_by(table.id)))


def test_a_change_of_inputs_is_told_once_with_its_evidence(watched: Settings) -> None:
    (name,) = watched.applications
    send(watched, 0, 3 * WINDOW)
    assert eventually(lambda: len(windows(watched, "inputs")) == 3, timeout_s=60)
    assert not any(windows(watched, "inputs"))
    send(watched, 3 * WINDOW, 4 * WINDOW, shift=2.0)
    assert eventually(lambda: len(windows(watched, "inputs")) == 7, timeout_s=60)

    def told() -> list[dict[str, object]]:
        return lifecycle(watched, lambda fact: fact["type"] == "DriftDetected" and fact["application"] == name)

    assert eventually(lambda: bool(told()), timeout_s=30), "the outbox goes to Kafka"
    (fact,) = told()
    assert (fact["what"], fact["version"], fact["window"]["rows"]) == ("inputs", 1, WINDOW)
    assert fact["fields"][0]["field"] == "point.mean"
    assert fact["value"] >= fact["threshold"]
    assert {int(example.removeprefix("event-")) >= 3 * WINDOW for example in fact["examples"]} == {True}
    assert sum(fact["window"]["to_offsets"].values()) - sum(fact["window"]["from_offsets"].values()) >= WINDOW


def test_an_alarm_stands_for_the_champion_and_is_new_again_after_another_has_served(stack: Settings) -> None:
    of = {"application": "drifted", "what": "inputs", "rows": 1, "threshold": 1.0, "p": 0.1, "evidence": {}}
    of |= dict.fromkeys(("first_at", "last_at", "at"), now())
    champions = {version: card(version, 0.9).model_copy(update={"application": "drifted"}) for version in (1, 2)}
    with mysql.engine(stack, "platform").connect() as connection:  # nothing is committed

        def concluded(version: int, what: str, *, drifted: bool) -> None:
            row = {"version": version, "what": what, "drifted": drifted, "value": 7.0}
            connection.execute(insert(DRIFT_WINDOWS).values(of | row))

        assert not _alarm_stands(connection, champions[1])
        concluded(1, "inputs", drifted=True)
        concluded(1, "predictions", drifted=False)
        assert _alarm_stands(connection, champions[1])
        assert _last(connection, "drifted", "inputs", 1) == Detector(value=7.0, drifted=True), "after a restart"
        assert not _alarm_stands(connection, champions[2])
        concluded(2, "inputs", drifted=False)
        assert _last(connection, "drifted", "inputs", 1) == Detector(), "after a rollback"
        assert not _alarm_stands(connection, champions[1])


def stored(settings: Settings, predictions: Iterable[Prediction]) -> None:
    store(mysql.engine(settings, "views"), [of_prediction(each) for each in predictions])


def send_labels(settings: Settings, labels: dict[str, str], *, in_order: bool = False) -> None:
    with Publisher(settings) as publisher:
        for event_id, label in labels.items():
            key = "of all" if in_order else event_id
            publisher.send(topics.labels(settings.applications[0]), key, {"event_id": event_id, "label": label})


def test_answers_that_are_wrong_more_often_are_told_when_their_labels_come(watched: Settings) -> None:
    (name,), rows = watched.applications, range(10_000, 10_000 + 4 * WINDOW)
    stored(watched, (prediction(f"event-{n}", n, application=name, prediction="a") for n in rows))
    send_labels(watched, {f"event-{n}": "abc"[n % 3] for n in rows})
    assert eventually(lambda: True in windows(watched, "accuracy"), timeout_s=60)


def labelled(settings: Settings) -> dict[int, tuple[int, int | None, int]]:
    """By version, how many answers have a label, are right, and have none."""
    found = statistics(mysql.engine(settings, "analyst"), settings.applications[0]).labelled
    return {each.model_version: (each.rows, each.correct, each.unlabelled) for each in found}


def test_live_accuracy_is_of_what_each_version_answered_then(watched: Settings) -> None:
    (name,) = watched.applications

    def figures() -> dict[int, tuple[int, int | None, int]]:
        return labelled(watched)

    def answer(n: int, version: int, **facts: object) -> Prediction:
        known = {"application": name, "kafka_partition": 1, "model_version": version, "prediction": "a"}
        return prediction(f"live-{n}", n, **known | facts)

    send_labels(watched, {"live-0": "a"})  # its answer comes later
    stored(watched, [answer(n, version=7) for n in range(1, 10)])
    send_labels(watched, {f"live-{n}": "b" if n == 8 else "a" for n in range(1, 9)} | {"live-9": "maybe"})
    send_labels(watched, {"live-1": "NaN"})
    stored(watched, [answer(0, version=7)])
    assert eventually(lambda: figures().get(7) == (9, 8, 1)), (figures(), "'maybe' and 'NaN' say nothing")

    stored(watched, [answer(n, version=8) for n in range(10, 20)])
    stored(watched, [answer(19, version=9, replayed=True)])
    show(mysql.engine(watched, "views"), name, GRACE, p1=100)
    assert trim(mysql.engine(watched, "views"), name) == 20, (
        "the batch view has absorbed them, whatever it says of them"
    )
    send_labels(watched, {"live-8": "a", "live-9": "b"} | {f"live-{n}": "a" for n in range(10, 14)} | {"live-19": "a"})
    assert eventually(lambda: figures().get(8) == (5, 5, 5)), (figures(), "what a backfill replaced was a live answer")
    assert 9 not in figures()
    assert figures()[7] == (10, 9, 0), "a newer label takes the place of the one before"

    table, platform = LIVE_ANSWERS.c, mysql.engine(watched, "platform")
    copy = select(table.event_id, table.kafka_partition, table.kafka_offset).where(
        table.application == name, table.event_id == "live-8"
    )
    with platform.connect() as connection:
        ((event_id, partition, offset),) = connection.execute(copy).all()
    hide(platform, name, iter([Row(event_id, partition, offset + 1)]))
    assert figures()[7] == (10, 9, 0), "another copy was withdrawn, and is none of MySQL's"
    hide(platform, name, iter([Row(event_id, partition, offset)]))
    assert figures()[7] == (9, 8, 0), "what is withdrawn counts no more"


def test_a_label_waits_for_its_answer_across_a_restart(monitor: Monitor, watched: Settings) -> None:
    known = {"application": watched.applications[0], "kafka_partition": 2, "model_version": 10, "prediction": "a"}
    stored(watched, [prediction("there", 1, **known)])
    send_labels(watched, {"not-yet": "a", "there": "a"}, in_order=True)
    assert eventually(lambda: labelled(watched).get(10) == (1, 1, 0))
    monitor.stop()
    monitor.start()
    stored(watched, [prediction("not-yet", 2, **known)])
    assert eventually(lambda: labelled(watched).get(10) == (2, 2, 0)), labelled(watched)
