"""Drift through real Kafka: windows are kept, and a change of what events are like is told with its evidence."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from pydantic_core import to_json
from sqlalchemy import select

from batch_layer.gate import promote
from batch_layer.monitor import watch
from batch_layer.publish import publish_run
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher, create_topics
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.loading import PackedApplication
from deeplambda.records import topics
from deeplambda.service.loops import LoopStatus
from deeplambda.state.tables import DRIFT_WINDOWS, REALTIME_PREDICTIONS
from tests.integration.blobs import CENTRES, lifecycle, prepared_data_set, train_blobs
from tests.traffic import eventually

WINDOW = 200


@pytest.fixture(scope="module")
def watched(stack: Settings, application: PackedApplication) -> Iterator[Settings]:
    """The settings of a monitor that watches the module's application, whose version 1 serves."""
    own = stack.model_copy(update={"applications": (application.name,)})
    create_topics(own)
    trained = train_blobs(stack, application, prepared_data_set(stack, application.name))
    promote(stack, application, publish_run(stack, application, trained), force=True)
    stop = threading.Event()
    thread = threading.Thread(target=watch, args=(own, LoopStatus(), stop))
    thread.start()
    yield own
    stop.set()
    thread.join()


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


def test_answers_that_are_wrong_more_often_are_told_when_their_labels_come(watched: Settings) -> None:
    (name,) = watched.applications
    rows, moment = range(10_000, 10_000 + 4 * WINDOW), now()
    made = [
        {
            "application": name,
            "event_id": f"event-{n}",
            "kafka_partition": 0,
            "kafka_offset": n,
            "occurred_at": moment,
            "received_at": moment,
            "predicted_at": moment,
            "stored_at": moment,
            "model_version": 1,
            "prediction": "a",
        }
        for n in rows
    ]
    with mysql.engine(watched, "views").begin() as connection:
        connection.execute(REALTIME_PREDICTIONS.insert(), made)
    with Publisher(watched) as publisher:
        for n in rows:
            publisher.send(topics.labels(name), f"event-{n}", {"event_id": f"event-{n}", "label": "abc"[n % 3]})
    assert eventually(lambda: True in windows(watched, "accuracy"), timeout_s=60)
