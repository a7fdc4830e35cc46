"""What upkeep measures once a day, over real Kafka and a real archive: skew between stream and batch, and quality."""

import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from pydantic_core import to_json
from pyspark.sql import SparkSession

from batch_layer import event_quality
from batch_layer.commands import batch
from batch_layer.upkeep import keep_up
from deeplambda.adapters.kafka import Publisher, create_topics
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.records.answers import answers
from deeplambda.service.loops import LoopStatus
from examples.digits.application import Digits
from speed_layer.commands import speed
from tests.integration.own_model_service import OwnService, drawn, fp32_outputs, model_of
from tests.integration.test_data_quality import said
from tests.integration.test_recompute import archive
from tests.integration.test_views import prediction
from tests.traffic import digit_event

EVENTS = 40


class OneRound(LoopStatus):
    """Stops the loop after its first round."""

    def __init__(self) -> None:
        super().__init__()
        self.stop = threading.Event()

    def working(self, **details: object) -> None:
        super().working(**details)
        self.stop.set()

    def waiting(self, why: str) -> None:
        super().waiting(why)
        self.stop.set()


def test_once_a_day_stream_and_batch_are_compared_and_the_days_that_have_ended_are_measured(
    stack: Settings, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, model = OwnService(stack, tmp_path), model_of(1)
    create_topics(service.settings)
    version, payload = service.publish(model), drawn(EVENTS)
    images = payload["image"].to_pylist()
    events = [digit_event(f"event-{n}", np.frombuffer(image, np.uint8)) for n, image in enumerate(images)]
    found = answers(Digits.objective, fp32_outputs(model, {"features": Digits().transform(payload)}))
    moment = now()
    archive(spark, service, {event["event_id"]: to_json(event) for event in events})
    with Publisher(service.settings) as publisher:
        for n, event in enumerate(events):
            made = prediction(
                event["event_id"],
                n,
                application=service.name,
                occurred_at=moment,
                received_at=moment,
                predicted_at=moment,
                model_version=version,
                code_version=service.featurizer_id,
                prediction="none" if n == 7 else found.values_N[n],
                confidence=found.confidence_N[n],
                scores=found.scores_N[n],
            )
            publisher.send(topics.predictions(service.name), made.event_id, made)
    monkeypatch.setattr(event_quality, "now", lambda: moment + timedelta(days=2))  # so that the events' day has ended
    own = service.settings.model_copy(update={"applications": (service.name,), "maintain_every_s": 1})
    keep_up(spark, own, status := OneRound(), status.stop)
    assert status.waits_for is None
    measured = spark.table(f"lake.{service.name}.data_quality").where("subject = 'events'").collect()
    figures = {(row.day, row.measure): (row.value, row["rows"]) for row in measured}
    assert figures[moment.date(), "refused"] == (0, EVENTS)
    assert figures[moment.date(), "unreadable"] == (0, 1)
    name = service.name
    shown, told = said(speed, "skew", name), said(batch, "skew", str(service.settings.applications_dir / name))
    for field in ("confidence", "value", "scores", "refused"):
        assert f"{version} │ {field} │ {EVENTS} │ 0" in shown
        assert f"{name}/{version}, {field}: 0 of {EVENTS} events differ" in told
    assert f"{version} │ prediction │ {EVENTS} │ 1 │ event-7" in shown
    assert f"{name}/{version}, prediction: 1 of {EVENTS} events differ, such as event-7" in told
