"""The model service names the row that its model fails on, and the code whose features it takes."""

import gzip
import json
import re
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flask.testing import FlaskClient

from deeplambda.adapters.model_service import BODY_LIMIT_BYTES, FEATURIZER_HEADER, TIMEOUT_HEADER, _encode
from deeplambda.config import Settings
from deeplambda.features import Tensor
from deeplambda.records.featurizer import Featurizer
from deeplambda.state.card import Card
from examples.digits.application import Digits
from speed_layer.model_service import bodies
from speed_layer.model_service.aside import LARGE_BYTES
from speed_layer.model_service.champions import Champion, ChampionWatch
from speed_layer.model_service.fast_path import FastPath, Forward
from speed_layer.model_service.metrics import ServiceMetrics
from speed_layer.model_service.oip import HEADER_LENGTH
from speed_layer.model_service.serving import Champions
from speed_layer.model_service.web import create_app
from tests.unit.speed_layer.test_service_metrics import CARD

TENSOR = {"name": "features", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [3.0] * 784}


def forward(rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Fails on a first pixel of 1, and gives NaN on one of 2."""
    first_N = rows["features"][:, 0, 0, 0]
    if (first_N == 1).any():
        raise IndexError("index out of range")
    return torch.where(first_N == 2, torch.nan, first_N).unsqueeze(1).expand(-1, 10)


def client_of(settings: Settings, forward: Forward = forward, card: Card = CARD, outputs: int = 10) -> FlaskClient:
    featurizer = Featurizer(Digits(), code_version="c1")
    watch = ChampionWatch(settings, "digits", on_swap=lambda *_: None, on_failure=lambda _: None)
    path = FastPath(variant="fp32", forward=forward, exact=forward, rescores=False)
    watch.current = Champion(featurizer=featurizer, card=card, path=path, output_shape=(outputs,))
    return create_app(settings, Champions({"digits": watch}), ServiceMetrics(("digits",))).test_client()


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(Settings(data_dir=tmp_path))


def infer(client: FlaskClient, first_pixels: list[float], **headers: str) -> Any:
    data = [[[[first] + [0.0] * 27] + [[0.0] * 28] * 27] for first in first_pixels]
    tensor = {"name": "features", "datatype": "FP32", "shape": [len(data), 1, 28, 28], "data": data}
    return client.post("/v2/models/digits/infer", json={"inputs": [tensor]}, headers=headers)


@pytest.mark.parametrize(
    ("bad", "named"), [(1, r"row 5: the model raised IndexError: index out of range"), (2, "row 5")]
)
def test_the_row_that_a_model_fails_on_is_named(client: FlaskClient, bad: int, named: str) -> None:
    reply = infer(client, [0, 0, 0, 3, 3, bad, 0])
    assert (reply.status_code, reply.json["detail"].startswith(named)) == (422, True), reply.json
    assert infer(client, [0, 0, 3]).status_code == 200


def test_features_of_other_code_are_refused_with_the_name_of_the_code_that_serves(client: FlaskClient) -> None:
    reply = infer(client, [0], **{FEATURIZER_HEADER: "c0-ab12"})
    assert (reply.status_code, reply.json["featurizer"], reply.json["model_version"]) == (409, "c1", 1)
    assert infer(client, [0], **{FEATURIZER_HEADER: "c1"}).status_code == 200
    assert infer(client, [0]).status_code == 200, "stock clients say nothing of code"


def test_a_reply_that_would_fill_the_memory_is_refused_before_any_work(tmp_path: Path) -> None:
    """A request of a few bytes a row would have been answered with hundreds of megabytes."""
    width, passes = 60_000, list[int]()

    def wide(rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        passes.append(len(rows["features"]))
        return torch.zeros(passes[-1], width)

    client = client_of(Settings(data_dir=tmp_path), wide, outputs=width)

    def ask(rows: int, **output: Any) -> Any:
        tensor = TENSOR | {"shape": [rows, 1, 28, 28], "data": [0.0] * 784 * rows}
        wanted = [{"name": "outputs", "parameters": output}]
        return client.post("/v2/models/digits/infer", json={"inputs": [tensor], "outputs": wanted})

    refused = ask(20)
    assert (refused.status_code, str(BODY_LIMIT_BYTES) in refused.json["detail"]) == (413, True)
    assert ask(80, binary_data=True).status_code == 413
    instances = [{"image": b64encode(bytes(784)).decode()}] * 80
    assert client.post("/v1/models/digits:predict", json={"instances": instances}).status_code == 413
    assert not passes
    assert ask(20, binary_data=True).status_code == 200
    assert ask(2).status_code == 200


def test_a_time_that_is_none_and_one_that_is_over_are_refused(client: FlaskClient) -> None:
    assert infer(client, [0], **{TIMEOUT_HEADER: "soon"}).status_code == 400
    late = infer(client, [0], **{TIMEOUT_HEADER: "0"})
    assert (late.status_code, late.content_type) == (429, "application/problem+json")
    assert int(late.headers["Retry-After"]) >= 1
    assert infer(client, [0], **{TIMEOUT_HEADER: "10000"}).status_code == 200


@pytest.mark.parametrize(
    ("coding", "compressed"),
    [
        ("gzip", gzip.compress),
        ("X-GZip", gzip.compress),
        ("gzip", lambda content: gzip.compress(content[:100]) + gzip.compress(content[100:])),
        ("Deflate", zlib.compress),
        ("identity", bytes),
    ],
)
def test_a_compressed_body_is_read_as_any_other(client: FlaskClient, coding: str, compressed: Any) -> None:
    content = compressed(json.dumps({"inputs": [TENSOR]}).encode())
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    assert client.post("/v2/models/digits/infer", data=content, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("coding", "content", "status"),
    [
        ("gzip", gzip.compress(bytes(BODY_LIMIT_BYTES + 1)), 413),
        ("gzip", gzip.compress(b"{}")[:-9], 400),
        ("gzip", gzip.compress(json.dumps({"inputs": [TENSOR]}).encode()) + gzip.compress(b"") * 300, 400),
        ("gzip", gzip.compress(bytes(BODY_LIMIT_BYTES)) + gzip.compress(b" "), 413),
        ("gzip", gzip.compress(json.dumps({"inputs": [TENSOR]}).encode()) + b"more", 400),
        ("deflate", zlib.compress(json.dumps({"inputs": [TENSOR]}).encode()) + b" ", 400),
        ("deflate", b"neither", 400),
        ("br", b"", 415),
        ("gzip, gzip", b"", 415),
    ],
    ids=[
        "too large",
        "cut off",
        "many members",
        "too large together",
        "more behind gzip",
        "more behind",
        "damaged",
        "unknown",
        "twice",
    ],
)
def test_a_compressed_body_is_bounded_and_whole(client: FlaskClient, coding: str, content: bytes, status: int) -> None:
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    reply = client.post("/v2/models/digits/infer", data=content, headers=headers)
    assert (reply.status_code, reply.content_type) == (status, "application/problem+json")


def test_the_time_for_an_answer_begins_with_the_requests_first_byte(client: FlaskClient) -> None:
    for begun_s, status in ((0, 200), (60, 429)):
        environ = {"gunicorn.socket": SimpleNamespace(begun=time.monotonic() - begun_s)}
        reply = client.post(
            "/v2/models/digits/infer",
            json={"inputs": [TENSOR]},
            headers={TIMEOUT_HEADER: "30000"},
            environ_overrides=environ,
        )
        assert reply.status_code == status


class SeenBy(dict[str, Tensor]):
    """A model's tensors, and the threads that ask what they are."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.threads: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.threads.add(threading.current_thread().name)
        return super().__getitem__(name)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("rows", [1, 100])
def test_much_json_is_parsed_beside_the_loop_and_little_or_binary_on_it(
    tmp_path: Path, rows: int, binary: bool
) -> None:
    tensors = SeenBy(CARD.features)
    client = client_of(Settings(data_dir=tmp_path), card=CARD.model_copy(update={"features": tensors}))
    body, headers = _encode({"features": np.zeros((rows, 1, 28, 28), np.float32)})
    if not binary:
        body = json.dumps({"inputs": [TENSOR | {"shape": [rows, 1, 28, 28], "data": [0.0] * 784 * rows}]}).encode()
        headers |= {HEADER_LENGTH: str(len(body))}
    assert client.post("/v2/models/digits/infer", data=body, headers=headers).status_code == 200
    (thread,) = tensors.threads
    assert thread.startswith("large") == (rows > 1 and not binary)


def test_bodies_take_room_until_they_are_answered_and_small_ones_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "ROOM_BYTES", 3 * LARGE_BYTES // 2)
    begun, gate = threading.Event(), threading.Event()

    def waiting(rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        begun.set()
        assert gate.wait(60)
        return forward(rows)

    client, image = client_of(Settings(data_dir=tmp_path), waiting), {"image": b64encode(bytes(784)).decode()}

    def status(instances: int) -> int:
        body = {"instances": [image] * instances}
        return client.application.test_client().post("/v1/models/digits:predict", json=body).status_code

    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(status, 80)
        assert begun.wait(60)
        small = pool.submit(status, 1)
        assert status(80) == 429
        gate.set()
        assert (held.result(), small.result()) == (200, 200)
    assert status(80) == 200


def test_methods_that_http_does_not_know_are_counted_together(client: FlaskClient) -> None:
    for method in ("GET", "BREW", "WHEN"):
        client.open("/v2", method=method)
    methods = set(re.findall(r'requests_total{method="(\w+)"', client.get("/metrics").text))
    assert methods == {"GET", "other"}


def test_the_likeliest_classes_are_named_where_a_client_asks_for_them(client: FlaskClient) -> None:
    asked = {"inputs": [TENSOR], "outputs": [{"name": "outputs", "parameters": {"classification": 2}}]}
    (found,) = client.post("/v2/models/digits/infer", json=asked).json["outputs"]
    assert (found["datatype"], found["shape"]) == ("BYTES", [1, 2])
    assert found["data"] == ["3.000000:0:0", "3.000000:1:1"]
    asked["outputs"] = [{"name": "prediction", "parameters": {"classification": 2}}]
    assert client.post("/v2/models/digits/infer", json=asked).status_code == 400


def test_statistics_count_requests_rows_and_passes(client: FlaskClient) -> None:
    assert (infer(client, [3, 4]).status_code, infer(client, [1]).status_code) == (200, 422)
    (found,) = client.get("/v2/models/digits/stats").json["model_stats"]
    assert found == client.get("/v2/models/stats").json["model_stats"][0]
    assert (found["inference_count"], found["execution_count"]) == (2, 2)
    assert [found["inference_stats"][each]["count"] for each in ("success", "fail", "queue")] == [1, 1, 1]
    assert [each["batch_size"] for each in found["batch_stats"]] == [1, 2]


def test_a_request_of_several_passes_counts_once_and_has_not_waited_for_its_own(client: FlaskClient) -> None:
    assert infer(client, [3] * 150).status_code == 200
    (found,) = client.get("/v2/models/digits/stats").json["model_stats"]
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    assert (found["inference_count"], found["execution_count"]) == (150, 3)
    assert [found["inference_stats"][each]["count"] for each in ("success", *stages)] == [1] * 5
    in_passes_ns = sum(found["inference_stats"][each]["ns"] for each in stages[1:])
    waited_ns = max(0, found["inference_stats"]["success"]["ns"] - in_passes_ns)  # passes may run side by side
    assert found["inference_stats"]["queue"]["ns"] == pytest.approx(waited_ns, abs=10)


def test_the_repository_lists_what_serves_and_only_operators_change_it(client: FlaskClient) -> None:
    (found,) = client.post("/v2/repository/index", json={"ready": True}).json
    assert (found["name"], found["version"], found["state"]) == ("digits", "1", "READY")
    assert client.post("/v2/repository/index", data=bytes(2**20)).status_code == 413
    packed = {"data": gzip.compress(b'{"ready": true}'), "headers": {"Content-Encoding": "gzip"}}
    assert client.post("/v2/repository/index", **packed).json == [found]
    refused = client.post("/v2/repository/models/digits/unload")
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert client.get("/v2/models/digits/ready").status_code == 200


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"stale_model_h": 1}, "DEEPLAMBDA_STALE_MODEL_H"), ({"stale_champions_s": 1e-9}, "Kafka has not answered yet")],
)
def test_what_is_stale_is_not_ready_and_says_why_and_is_alive_and_answers(
    tmp_path: Path, settings: dict[str, float], named: str
) -> None:
    client = client_of(Settings(data_dir=tmp_path, **settings))
    for path in ("/v2/health/ready", "/v2/models/digits/ready"):
        reply = client.get(path)
        assert (reply.status_code, named in reply.json["detail"]) == (503, True), reply.json
    assert client.get("/v1/health").status_code == 200, "or all replicas would be taken away at once"
    assert client.get("/v2/health/live").status_code == 200
    assert infer(client, [0]).status_code == 200


@pytest.mark.parametrize(
    ("tried_s", "promoted", "serving", "status"),
    [
        (0, ["digits", "fraud"], ["digits"], 503),
        (1000, ["digits", "fraud"], ["digits"], 200),
        (0, ["digits", "fraud"], ["digits", "fraud"], 200),
        (1000, ["digits", "fraud"], [], 503),
        (1000, ["fraud"], [], 503),
        (0, [], [], 200),
    ],
)
def test_a_process_is_sent_requests_once_it_has_tried_every_champion_and_one_serves(
    tmp_path: Path, tried_s: float, promoted: list[str], serving: list[str], status: int
) -> None:
    settings, watches = Settings(data_dir=tmp_path), {}
    for name in ("digits", "fraud"):
        watch = watches[name] = ChampionWatch(settings, name, on_swap=lambda *_: None, on_failure=lambda _: None)
        watch._promoted, watch._caught_up, watch._began_s = name in promoted, True, time.monotonic() - tried_s
        if name in serving:
            path = FastPath(variant="fp32", forward=forward, exact=forward, rescores=False)
            featurizer = Featurizer(Digits(), code_version="c1")
            watch.current = Champion(featurizer=featurizer, card=CARD, path=path, output_shape=(10,))
    reply = create_app(settings, Champions(watches), ServiceMetrics(tuple(watches))).test_client().get("/v1/health")
    assert reply.status_code == status, reply.json
    assert status == 503 or reply.json == {"serving": serving}
