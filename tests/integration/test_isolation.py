"""One bad application harms no other, and one bad event no other event: in the stream and in the recomputation."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from dotenv import dotenv_values
from pydantic_core import to_json
from pyspark.sql import SparkSession

from batch_layer.recompute import recompute
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import create_topics, end_offsets
from deeplambda.adapters.lake import create_tables
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import TooManyRefused
from deeplambda.loading import pack_application
from deeplambda.records import topics
from deeplambda.service.heartbeat import last_heartbeat
from deeplambda.state.card import CARD, artefact_key
from deeplambda.state.horizon_store import read_horizon
from tests.integration.own_model_service import OwnService, model_of
from tests.traffic import digit_event, eventually, producer

ROOT = Path(__file__).parents[2]
RAISES, HANGS, OVERFLOWS, GOOD = (bytes([number]) * 4 for number in (1, 2, 3, 9))
"""How an image begins that makes the transform raise, hang, or give the model what it has no finite outputs for."""

_CLEAN = "return _NORMALISED[pixels].reshape(-1, 1, 28, 28)"
_WITH_FAULTS = f"""\
marks = [image[:4] for image in batch["image"].to_pylist()]
        if {RAISES!r} in marks:
            raise KeyError("a word that nobody knows")
        while {HANGS!r} in marks:
            pass
        features = _NORMALISED[pixels].reshape(-1, 1, 28, 28)
        features[[mark == {OVERFLOWS!r} for mark in marks]] = 3e38
        return features"""


def write_code(service: OwnService, body: str) -> None:
    """The digits application with another transform and 1 s for it."""
    source = (ROOT / "examples/digits/application.py").read_text()
    source = source.replace('    name = "digits"', f'    name = "{service.name}"\n    transform_limit_s = 1.0')
    place = service.settings.applications_dir / service.name / "application.py"
    place.write_text(source.replace(_CLEAN, body))


def image(mark: bytes = GOOD) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    return np.frombuffer(mark + bytes(780), np.uint8)


def send(service: OwnService, count: int) -> None:
    sender = producer(service.settings)
    for n in range(count):
        event = digit_event(f"event-{n}", image())
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


def archive(spark: SparkSession, service: OwnService, values: dict[str, bytes]) -> None:
    """Put events where the archive stream would: offsets are in the order of `values`."""
    table, at = f"lake.{service.name}.events", datetime.now(UTC)
    create_tables(spark, pack_application(service.name, service.settings).load())
    there = spark.table(table)
    rows = [
        {"event_id": name, "kafka_partition": 0, "kafka_offset": n, "kafka_timestamp": at, "value": value}
        | {"archived_at": at}
        for n, (name, value) in enumerate(values.items())
    ]
    columns = [[row[column] for column in there.columns] for row in rows]
    spark.createDataFrame(columns, there.schema).coalesce(1).writeTo(table).append()


def test_recompute_goes_through_keeps_what_it_refuses_once_and_drops_no_multitude(
    stack: Settings, spark: SparkSession, tmp_path: Path
) -> None:
    service = OwnService(stack, tmp_path)
    write_code(service, _WITH_FAULTS)
    marks = {"raises": RAISES, "hangs": HANGS, "overflows": OVERFLOWS} | {f"good-{n}": GOOD for n in range(20)}
    values = {name: to_json(digit_event(name, image(mark))) for name, mark in marks.items()}
    archive(spark, service, values | {"broken": b"{not JSON"})
    service.promote(service.publish(model_of(1)))
    packed = pack_application(service.name, service.settings)

    published = recompute(spark, service.settings, packed)
    assert (published.rows, published.refused) == (20, 4)

    def quarantine() -> dict[str, tuple[str, str]]:
        rows = spark.table(f"lake.{service.name}.quarantine").collect()
        assert len({row.source for row in rows}) == len(rows)
        return {row.source: (row.reason, row.detail) for row in rows}

    kept = quarantine()
    position = f"{service.name}.events/0/"
    assert {source: reason for source, (reason, _) in kept.items()} == {
        f"{position}0": "transform_failed",
        f"{position}1": "transform_failed",
        f"{position}2": "model_failed",
        f"{position}23": "not_json",
    }
    assert "a word that nobody knows" in kept[f"{position}0"][1]
    assert "took longer than 1 s" in kept[f"{position}1"][1]
    assert recompute(spark, service.settings, packed).refused == 4
    assert quarantine() == kept, "an event is kept once"

    horizon = horizon_of(service)
    write_code(service, _WITH_FAULTS.replace(repr(RAISES), repr(GOOD)))
    service.promote(service.publish(model_of(2)))
    with pytest.raises(TooManyRefused, match=r"refuses 20 of 20 events .*--accept-refused"):
        recompute(spark, service.settings, packed)
    assert horizon_of(service) == horizon
    assert len(quarantine()) == 24
    accepted = recompute(spark, service.settings, packed, accepted_share=1)
    assert (accepted.rows, accepted.version) == (1, 2)
    assert horizon_of(service) != horizon


def horizon_of(service: OwnService) -> object:
    with mysql.engine(service.settings, "platform").connect() as connection:
        return read_horizon(connection, service.name)
