"""A canary's candidate answers its share of the events, and whatever it does costs no request its answer."""

import base64
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flask.testing import FlaskClient

from deeplambda.config import Settings
from deeplambda.records.experiments import CANARY_HEADER, Canary
from deeplambda.records.featurizer import Featurizer
from examples.digits.application import Digits
from speed_layer.model_service import web
from speed_layer.model_service.canaries import FAILURES, RunningCanary
from speed_layer.model_service.champions import Champion, ChampionWatch
from speed_layer.model_service.fast_path import FastPath
from speed_layer.model_service.metrics import ServiceMetrics
from speed_layer.model_service.passes import Passes
from speed_layer.model_service.serving import Champions
from speed_layer.model_service.turns import Turns
from tests.unit.speed_layer.test_service_metrics import CARD

IDS = [f"event-{n}" for n in range(200)]
KNOWN = Canary(experiment=1, version=2, share=0.25)
TAKEN = [each for each in IDS if KNOWN.takes(each)]
IMAGE = base64.b64encode(bytes(784)).decode()

Forward = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


def says(digit: int) -> Forward:
    """A model that sees one digit everywhere."""
    return lambda rows: torch.eye(10)[digit].expand(len(rows["features"]), 10) * 9


def raises(rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
    raise IndexError("index out of range")


class Served:
    """A service whose champion, version 1, says 1 to everything unless told, beside a candidate, version 2."""

    def __init__(self, folder: Path, forward: Forward, champion: Forward | None = None) -> None:
        settings, metrics = Settings(data_dir=folder), ServiceMetrics(("digits",))
        watch = ChampionWatch(settings, "digits", on_swap=lambda *_: None, on_failure=lambda _: None)
        watch.current = self._version(1, champion or says(1))
        self.failures: list[tuple[str, str]] = []
        self.canary = RunningCanary(
            known=KNOWN,
            candidate=self._version(2, forward),
            passes=Passes("digits", Turns(1), metrics.passed),
            on_failure=lambda *told: self.failures.append(told),
        )
        champions = Champions({"digits": watch}, {"digits": self.canary})
        self.client: FlaskClient = web.create_app(settings, champions, metrics).test_client()

    @staticmethod
    def _version(number: int, forward: Forward) -> Champion:
        path = FastPath(variant="fp32", forward=forward, exact=forward, rescores=False)
        card = CARD.model_copy(update={"version": number})
        return Champion(featurizer=Featurizer(Digits(), code_version="c1"), card=card, path=path, output_shape=(10,))

    def predict(self, ids: list[str | None], status: int = 200) -> Any:
        instances = [{"image": IMAGE} | ({} if each is None else {"event_id": each}) for each in ids]
        reply = self.client.post("/v1/models/digits:predict", json={"instances": instances})
        assert reply.status_code == status, reply.json
        return reply


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, only what hangs takes too long."""
    monkeypatch.setattr(web, "ANSWERS_WITHIN_S", 60.0)


@pytest.fixture
def hanging() -> Iterator[Forward]:
    """A model that does not come back before the test is over."""
    over = threading.Event()

    def forward(rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        over.wait()
        return says(2)(rows)

    yield forward
    over.set()


def test_each_event_is_answered_by_the_version_that_its_id_names(tmp_path: Path) -> None:
    answers = Served(tmp_path, says(2)).predict(list(IDS)).json["predictions"]
    assert [each["event_id"] for each in answers] == IDS
    assert {each["event_id"]: (each["model_version"], each["prediction"]) for each in answers} == {
        each: (2, "2") if each in TAKEN else (1, "1") for each in IDS
    }


def test_a_request_for_the_candidate_alone_names_it(tmp_path: Path) -> None:
    reply = Served(tmp_path, says(2)).predict(TAKEN[:3])
    assert (reply.json["model_version"], reply.headers["X-Model-Version"]) == (2, "2")


def test_what_has_no_event_id_is_the_champion_s(tmp_path: Path) -> None:
    reply = Served(tmp_path, says(2)).predict([None] * 50)
    assert {each["prediction"] for each in reply.json["predictions"]} == {"1"}


def test_whoever_routes_events_is_told_of_the_canary(tmp_path: Path) -> None:
    served = Served(tmp_path, says(2))
    assert Canary.of_header(served.client.get("/v2/models/digits").headers[CANARY_HEADER]) == KNOWN
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.0] * 784}
    reply = served.client.post("/v2/models/digits/versions/2/infer", json={"inputs": [tensor]})
    assert (reply.status_code, reply.json["model_version"]) == (200, "2")


def test_a_candidate_that_fails_again_and_again_is_asked_no_more_and_nobody_notices(tmp_path: Path) -> None:
    served = Served(tmp_path, raises)
    for event_id in TAKEN[: FAILURES + 2]:
        answers = served.predict([event_id, None]).json["predictions"]
        assert [each["prediction"] for each in answers] == ["1", "1"]
    assert [event_id for event_id, _ in served.failures] == TAKEN[:FAILURES]
    assert "IndexError: index out of range" in served.failures[0][1]
    assert CANARY_HEADER not in served.client.get("/v2/models/digits").headers
    assert served.client.post("/v2/models/digits/versions/2/infer", json={}).status_code == 404


def test_an_event_that_is_sent_again_and_again_does_not_end_a_canary(tmp_path: Path) -> None:
    served = Served(tmp_path, raises)
    for _ in range(FAILURES + 2):
        served.predict(TAKEN[:1])
    assert served.canary.is_asked
    assert {event_id for event_id, _ in served.failures} == {TAKEN[0]}


def test_what_the_champion_has_no_answer_to_either_is_no_failure_of_the_candidate(tmp_path: Path) -> None:
    served = Served(tmp_path, raises, champion=raises)
    for event_id in TAKEN[: FAILURES + 2]:
        served.predict([event_id], status=422)
    assert served.failures == []
    assert served.canary.is_asked


def test_no_request_waits_long_for_a_candidate_that_hangs(
    tmp_path: Path, hanging: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "ANSWERS_WITHIN_S", 0.05)
    served = Served(tmp_path, hanging)
    assert served.predict(TAKEN[:2]).json["model_version"] == 1
    others = [each for each in IDS if each not in TAKEN]
    assert {each["prediction"] for each in served.predict(others[:5]).json["predictions"]} == {"1"}
    assert len(served.failures) == 1
