"""A span of events is scored again by the version that serves now, once, and no view gets a row more."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic_core import from_json
from sqlalchemy import delete, select
from typer.testing import CliRunner

from batch_layer.live_answers import Label, LiveAnswers
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher, consumer, create_topics, end_offsets
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.objective import Classification
from deeplambda.records import topics
from deeplambda.records.predictions import Prediction
from deeplambda.state.tables import HORIZONS, LIVE_ANSWERS, REALTIME_PREDICTIONS
from serving_layer.query_service.live_accuracy import live_accuracy
from speed_layer import commands
from speed_layer.backfill import planned, score_again
from tests.integration.own_model_service import OwnService, drawn, model_of
from tests.integration.test_dead_letter_replay import received
from tests.integration.test_views import move, store
from tests.traffic import digit_event

EVENTS = 70
DONE = "event-7"
REFUSED, WITHDRAWN = "refused", "event-8"


@pytest.fixture
def service(stack: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnService]:
    """Version 2 serves; of 70 events version 1 has scored all but one, which version 2 has, and one, which was
    withdrawn. One more was refused."""
    service = OwnService(stack, tmp_path)
    code = tmp_path / service.name / "application.py"
    code.write_text(code.read_text().replace("    sources =", '    slices = ("image",)\n    sources =', 1))
    create_topics(service.settings)
    first, second = service.publish(model_of(1)), service.publish(model_of(2))
    service.promote(second)
    images = drawn(EVENTS)["image"].to_pylist()
    with Publisher(service.settings) as publisher:
        for n, image in enumerate(images):
            event = digit_event(f"event-{n}", np.frombuffer(image, np.uint8))
            publisher.send(topics.events(service.name), event["event_id"], event)
        publisher.send_bytes(topics.events(service.name), REFUSED, b"{not JSON")
    before = [
        Prediction(
            application=service.name,
            event_id=key.decode(),
            kafka_partition=partition,
            kafka_offset=offset,
            occurred_at=now(),
            received_at=now(),
            predicted_at=now(),
            model_version=second if key == DONE.encode() else first,
            prediction="none",
            inference_ms=1.0,
            code_version="0" * 12,
        )
        for partition, offset, key, _ in received(service)
        if key is not None and key.decode() not in (REFUSED, WITHDRAWN)
    ]
    store(mysql.engine(stack, "views"), before)
    monkeypatch.setattr(commands, "load_settings", lambda: service.settings)
    with service.running():
        assert service.serves(second)
        yield service
    with mysql.engine(stack, "platform").begin() as connection:
        for table in (REALTIME_PREDICTIONS, LIVE_ANSWERS, HORIZONS):
            connection.execute(delete(table).where(table.c.application == service.name))


def said(*arguments: str) -> str:
    done = CliRunner().invoke(commands.speed, ["backfill", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def published(service: OwnService) -> list[Prediction]:
    """What stands in the topic of predictions."""
    topic, found = topics.predictions(service.name), []
    ends, reader = end_offsets(service.settings, topic), consumer(service.settings, topic)
    while any(reader.position(partition) < ends[partition.partition] for partition in reader.assignment()):
        for records in reader.poll(timeout_ms=500).values():
            found += [Prediction.model_validate(from_json(record.value)) for record in records]
    reader.close()
    return found


def view(service: OwnService) -> dict[str, Any]:
    table = REALTIME_PREDICTIONS
    with mysql.engine(service.settings, "platform").connect() as connection:
        rows = connection.execute(select(table).where(table.c.application == service.name)).all()
    found = {row.event_id: row for row in rows}
    assert len(found) == len(rows)
    return found


def text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}"


def test_a_span_is_scored_again_by_the_version_that_serves_and_a_second_time_does_nothing(service: OwnService) -> None:
    views, before = mysql.engine(service.settings, "views"), view(service)
    hour_ago, next_hour = text(now() - timedelta(hours=1)), text(now() + timedelta(hours=1))
    assert "events" in (nothing := said(service.name, "--from", next_hour))
    assert ": 0 events" in nothing
    assert ": 0 events" in said(service.name, "--from", "0001-01-01", "--to", hour_ago)
    dry = said(service.name, "--from", hour_ago)
    assert f"to be scored again by {service.name}/2: 68 events" in dry
    assert "68 of version 1" in dry
    assert "left out: 1, scored by it already" in dry
    assert not published(service), "a dry run scores nothing"

    span = planned(
        service.settings, mysql.engine(service.settings, "platform"), service.name, now() - timedelta(1), None
    )
    killed = score_again(service.settings, mysql.engine(service.settings, "platform"), span, share=1)
    some, made = next(killed)
    killed.close()
    assert some == made == len(published(service)) < 68
    store(views, published(service))

    assert f"scored again: {68 - some} events" in said(service.name, "--from", hour_ago, "--share", "1", "--send")
    again = published(service)
    assert len({each.event_id for each in again}) == len(again) == 68, "what was done before it was killed is not again"
    assert all(each.replayed for each in again)
    assert len({str((each.slices or {})["image"]) for each in again}) == 68, "each with what its event is a slice of"
    store(views, again)
    after = view(service)
    assert after.keys() == before.keys(), "no row more: not of what was refused or withdrawn"
    assert {row.model_version for row in after.values()} == {2}
    assert [name for name, row in after.items() if row.prediction == "none"] == [DONE]

    platform, labelled = mysql.engine(service.settings, "platform"), again[0].event_id
    label = Label(labelled, "7", now())
    (written,) = LiveAnswers(platform, service.name).take([label], Classification(tuple("0123456789")))
    assert (written["model_version"], written["prediction"]) == (1, "none"), "what was answered before it was replaced"
    with platform.connect() as connection:
        (version,) = live_accuracy(connection, service.name).versions
    assert (version.model_version, version.rows, version.unlabelled) == (1, 1, 67), "each once"

    assert "nothing is left to score" in said(service.name, "--from", hour_ago, "--send") + said(
        service.name, "--from", hour_ago
    )
    assert len(published(service)) == 68


def test_what_the_batch_view_has_absorbed_is_left_to_it(service: OwnService) -> None:
    ends = {
        f"p{partition}": offset
        for partition, offset in end_offsets(service.settings, topics.events(service.name)).items()
    }
    platform = mysql.engine(service.settings, "platform")
    move(platform, service.name, now(), **(ends | {"p0": 3}))
    found = planned(service.settings, platform, service.name, now() - timedelta(hours=1), None)
    beyond = [row for row in view(service).values() if row.kafka_partition == 0 and row.kafka_offset >= 3]
    assert found.events + found.done == len(beyond)
    assert found.in_batch_view == EVENTS + 1 - (ends["p0"] - 3)
    assert f"'deeplambda batch recompute {service.name}'" in said(service.name, "--from", "2020-01-01").replace(
        "\n", ""
    )
