"""One bad application harms no other in the stream."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from dotenv import dotenv_values
from pydantic_core import to_json

from deeplambda.adapters.kafka import create_topics, end_offsets
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.service.heartbeat import last_heartbeat
from deeplambda.state.card import CARD, artefact_key
from tests.integration.own_model_service import OwnService, model_of
from tests.traffic import digit_event, eventually, producer

ROOT = Path(__file__).parents[2]


def send(service: OwnService, count: int) -> None:
    sender = producer(service.settings)
    for n in range(count):
        event = digit_event(f"event-{n}", np.zeros(784, np.uint8))
        sender.send(topics.events(service.name), key=event["event_id"].encode(), value=to_json(event))
    sender.flush(timeout=30)
    sender.close()


class OwnStream:
    """A stream process of the test's own, on the real stack, with a data folder of its own for heartbeat and logs."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.log = settings.model_copy(update={"data_dir": folder}), folder / "stream.log"
        self._environment = {
            **{name: value for name, value in dotenv_values(settings.data_dir / "stack.env").items() if value},
            "DEEPLAMBDA_DATA_DIR": str(folder),
            "DEEPLAMBDA_SECRETS_DIR": str(settings.data_dir / "secrets"),
            "DEEPLAMBDA_MODEL_URL": settings.model_url,
            "DEEPLAMBDA_APPLICATIONS": to_json(settings.applications).decode(),
        }

    @contextlib.contextmanager
    def running(self) -> Iterator["OwnStream"]:
        command = [sys.executable, "-m", "speed_layer.stream"]
        with self.log.open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | self._environment)
        try:
            yield self
            assert process.poll() is None, "it should run on"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)

    def states(self) -> dict[str, str]:
        beat = last_heartbeat(self.settings, "stream")
        return beat.states if beat else {}


def scored(service: OwnService) -> int:
    return sum(end_offsets(service.settings, topics.predictions(service.name)).values())


def test_an_application_whose_stream_fails_is_named_and_the_other_is_scored(stack: Settings, tmp_path: Path) -> None:
    good, bad = OwnService(stack, tmp_path), OwnService(stack, tmp_path)
    good.settings = good.settings.model_copy(update={"applications": (good.name, bad.name, "not_there")})
    create_topics(good.settings.model_copy(update={"applications": (good.name, bad.name)}))
    for each in (good, bad):
        each.promote(each.publish(model_of(1)))
    with good.running():
        assert good.serves(1)
        assert eventually(lambda: good.request("GET", f"/v1/models/{bad.name}").status == 200)
        store, key = ObjectStore(stack), artefact_key(bad.name, 1, CARD)
        card = store.get(key)
        store.client.delete_object(Bucket=store.bucket, Key=key)
        send(good, 10)
        send(bad, 5)
        with OwnStream(good.settings, tmp_path).running() as stream:
            assert eventually(lambda: scored(good) == 10, 120), stream.log.read_text()[-3000:]
            assert eventually(lambda: "failing" in stream.states().get(bad.name, ""), 30), stream.states()
            states = stream.states()
            assert states[good.name] == "running"
            assert key in states[bad.name], "the reason should name what is missing"
            assert "no topic 'not_there.events'" in states["not_there"]
            send(good, 10)
            assert eventually(lambda: scored(good) == 20, 20), "it should be scored as if nothing were wrong"
            store.put(key, card)
            assert eventually(lambda: scored(bad) == 5, 60), stream.states()
            assert eventually(lambda: stream.states()[bad.name] == "running", 20), stream.states()
