"""What the model service refuses: bad requests, bodies without end, smuggled ones, slow clients, broken models."""

import contextlib
import gzip
import pickle
import select
import socket
import struct
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic_core import from_json, to_json
from safetensors.torch import save

from deeplambda.adapters.model_service import BODY_LIMIT_BYTES
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.features import Tensor
from deeplambda.state.card import WEIGHTS, artefact_key
from tests.integration.own_model_service import OwnService, model_of
from tests.traffic import eventually

JSON = {"Content-Type": "application/json"}
IMAGE = b64encode(bytes(784)).decode()
TENSOR = {"name": "features", "shape": [1, 1, 28, 28], "datatype": "FP32"}
SLOW_CLIENTS = 30


def tensor(**changes: Any) -> bytes:
    return to_json({"inputs": [TENSOR | {"data": [0.0] * 784} | changes]})


def instances(*rows: Any) -> bytes:
    return to_json({"instances": rows})


def png(width: int, height: int) -> str:
    buffer = BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("route", "body", "headers", "status", "named"),
    [
        ("infer", b"{", JSON, 400, "not JSON"),
        ("infer", b"", {}, 400, "not JSON"),
        ("infer", b"[" * 10_000 + b"]" * 10_000, JSON, 400, "200 deep"),
        ("infer", b'{"inputs": []}', JSON, 400, "'features'"),
        ("infer", tensor(shape=[1, 784]), JSON, 400, "shape"),
        ("infer", tensor(datatype="INT8"), JSON, 400, "FP32"),
        ("infer", tensor(data=["x"] * 784), JSON, 400, "number"),
        ("infer", tensor(data=[1e39] + [0.0] * 783), JSON, 422, "row 0"),
        ("infer", tensor(data=[3e38] * 784), JSON, 422, "outputs are not finite"),
        ("infer", b"{}", {"Content-Type": "text/plain"}, 415, "application/json"),
        ("infer", gzip.compress(bytes(10**8)), JSON | {"Content-Encoding": "gzip"}, 413, str(BODY_LIMIT_BYTES)),
        ("infer", b"{}", JSON | {"Content-Encoding": "br"}, 415, "uncompressed"),
        ("infer", b"{}", JSON | {"Inference-Header-Content-Length": "-1"}, 400, "Inference-Header-Content-Length"),
        ("predict", b"{", JSON, 400, "not JSON"),
        ("predict", b"[" * 10_000, JSON, 400, "not JSON"),
        ("predict", b"{}", JSON, 400, "instances"),
        ("predict", instances({"image": IMAGE}, {}), JSON, 422, "instance 1: field 'image'"),
        ("predict", instances({"image": 7}), JSON, 422, "instance 0: field 'image'"),
        ("predict", instances({"image": "AAAA"}), JSON, 422, "784"),
        ("predict", instances({"image": png(9_000, 9_000)}), JSON, 422, "9000×9000"),
        ("predict", instances({"image": "A" * 1_100_000}), JSON, 413, "1000000"),
        ("predict", b"image=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json"),
    ],
)
def test_bad_input_is_refused_with_what_to_mend(
    service: OwnService, route: str, body: bytes, headers: dict[str, str], status: int, named: str
) -> None:
    path = service.infer_path if route == "infer" else service.predict_path
    reply = service.request("POST", path, body=body, headers=headers)
    assert (reply.status, reply.headers["Content-Type"]) == (status, "application/problem+json")
    problem = reply.json()
    assert problem["status"] == status
    assert named in problem["detail"] + problem.get("remedy", "")
    expected = "close" if status == 415 else "keep-alive"  # of an unsupported type nothing is read
    assert reply.headers["Connection"] == expected
    assert service.request("POST", service.predict_path, body=instances({"image": IMAGE}), headers=JSON).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models/cats", 404),
        ("POST", "/v2/models/cats/infer", 404),
        ("POST", "/v1/models/cats:predict", 404),
        ("GET", "/v2/models/{name}/versions/99", 404),
        ("POST", "/v2/models/{name}/versions/99/infer", 404),
        ("GET", "/v2/models/{name}/infer", 405),
        ("DELETE", "/v2", 405),
    ],
)
def test_what_is_not_there_is_a_problem_too(service: OwnService, method: str, path: str, status: int) -> None:
    reply = service.request(method, path.format(name=service.name))
    assert (reply.status, reply.headers["Content-Type"]) == (status, "application/problem+json")


def head(service: OwnService, *headers: str, path: str | None = None) -> bytes:
    lines = [f"POST {path or service.infer_path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
        ("Content-Length: 5", "Content-Length: 5"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5, 5",),
        ("Content-Length: +5",),
        ("Content-Length: -5",),
        ("Content-Length : 5",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: gzip",),
        (" Content-Length: 5",),
    ],
)
def test_a_request_of_two_meanings_is_refused_and_the_connection_closed(
    service: OwnService, headers: tuple[str, ...]
) -> None:
    smuggled = b"0\r\n\r\nGET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = service.raw(head(service, *headers) + smuggled)
    assert status_of(answer) == 400
    assert b"application/problem+json" in answer
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows must not be answered as a request"


def test_a_body_one_byte_too_large_is_refused_on_its_length_alone(service: OwnService) -> None:
    answer = service.raw(head(service, f"Content-Length: {BODY_LIMIT_BYTES + 1}"))
    assert status_of(answer) == 413
    assert str(BODY_LIMIT_BYTES).encode() in answer


def test_a_body_of_the_limit_is_read(service: OwnService) -> None:
    reply = service.request("POST", service.infer_path, body=b" " * BODY_LIMIT_BYTES, headers=JSON)
    assert reply.status == 400


def test_an_endless_body_is_refused_soon_and_in_little_memory(service: OwnService) -> None:
    worker = service.worker()
    before, most = worker.memory_info().rss, 0
    megabyte = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    with socket.create_connection(service.address, timeout=5) as connection:
        connection.sendall(head(service, "Transfer-Encoding: chunked"))
        for _ in range(BODY_LIMIT_BYTES // 0x100000 + 1):
            connection.sendall(megabyte)
            most = max(most, worker.memory_info().rss)
        connection.settimeout(1)
        assert status_of(connection.recv(65536)) == 413
        with contextlib.suppress(ConnectionError):  # the service hangs up after a while
            for _ in range(1000):
                connection.sendall(megabyte)
                most = max(most, worker.memory_info().rss)
    assert (most - before) / 2**20 < 50


def test_a_chunked_body_is_read_as_any_other(service: OwnService) -> None:
    reply = service.request("POST", service.predict_path, body=iter([instances({"image": IMAGE})]), headers=JSON)
    assert reply.status == 200


def test_deep_json_and_bombs_take_little_memory(service: OwnService) -> None:
    before = service.worker().memory_info().rss
    for body in (b"[" * 10_000_000, b'{"a":' * 2_000_000, instances({"image": png(20_000, 20_000)})):
        assert service.request("POST", service.predict_path, body=body, headers=JSON).status in {400, 422}
    assert (service.worker().memory_info().rss - before) / 2**20 < 50


def test_health_answers_before_slow_clients_are_cut_off(service: OwnService) -> None:
    slow = [socket.create_connection(service.address) for _ in range(SLOW_CLIENTS)]
    try:
        for i, connection in enumerate(slow):
            half = head(service, "Content-Length: 1000") + b"{" if i % 2 else head(service)[:-2]
            connection.sendall(half)
        for _ in range(20):
            assert service.request("GET", "/v2/health/live").status == 200
        reply = service.request("POST", service.predict_path, body=instances({"image": IMAGE}), headers=JSON)
        assert reply.status == 200
        assert not select.select(slow, [], [], 0)[0]
    finally:
        for connection in slow:
            connection.close()


def test_a_request_that_trickles_in_is_cut_off(service: OwnService) -> None:
    with socket.create_connection(service.address, timeout=1) as connection:
        connection.sendall(head(service, "Content-Length: 100000"))

        def cut_off() -> bool:
            try:
                connection.sendall(b" ")
                return connection.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        begun = time.monotonic()
        assert eventually(cut_off, timeout_s=30)
        assert time.monotonic() - begun > 5, "a slow client has its time"


class Canary:
    """Whoever unpickles this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_broken_champion_never_serves_and_the_one_before_does(service: OwnService, tmp_path: Path) -> None:
    serving = service.version()
    assert serving is not None
    canary = tmp_path / "canary"
    not_finite = model_of(2)
    not_finite.get_parameter("0.weight")[0] = torch.nan
    good = save(model_of(3).state_dict())
    header_bomb = struct.pack("<Q", 2**62) + good[8:]
    broken = {
        "not finite": service.publish(not_finite),
        "do not fit": service.publish(model_of(3), weights=save(torch.nn.Linear(2, 2).state_dict())),
        "pickle": service.publish(model_of(3), weights=pickle.dumps(Canary(canary))),
        "header": service.publish(model_of(3), weights=header_bomb),
        "cut off": service.publish(model_of(3), weights=good[:-100]),
        "trained on": service.publish(model_of(3), features={"features": Tensor(shape=(3, 28, 28))}),
        "other outputs": service.publish(model_of(3), weights=save(model_of(4).state_dict())),
        "SHA-256": service.publish(model_of(3), weights_sha256="0" * 64),
    }
    for what, version in broken.items():
        service.promote(version)
        error = service.fails(lambda text, version=version: f"'{service.name}/{version}'" in text)
        assert "not loaded" in error
        assert service.version() == serving, what
        assert service.request("GET", "/v2/health/ready").status == 200
    assert not canary.exists()
    fixed = service.publish(model_of(4))
    service.promote(fixed)
    assert service.serves(fixed)
    assert service.error() is None


def test_roll_back_serves_the_version_before(service: OwnService) -> None:
    first, second = service.publish(model_of(5)), service.publish(model_of(6))
    service.promote(first)
    assert service.serves(first)
    service.promote(second)
    assert service.serves(second)
    service.roll_back()
    assert service.serves(first)


def test_a_champion_whose_object_is_flipped_in_s3_serves_once_it_is_restored(service: OwnService) -> None:
    version = service.publish(model_of(7))
    store, key = ObjectStore(service.settings), artefact_key(service.name, version, WEIGHTS)
    weights = store.get(key)
    store.put(key, weights[:-1] + bytes([weights[-1] ^ 1]))
    service.promote(version)
    assert "was recorded" in service.fails(lambda text: f"/{version}'" in text)
    store.put(key, weights)
    service.promote(service.publish(model_of(8)))
    service.promote(version)
    assert service.serves(version)


def test_many_clients_at_once_all_get_their_own_answer(service: OwnService) -> None:
    def ask(i: int) -> bool:
        body = instances({"event_id": f"e{i}", "image": IMAGE})
        reply = service.request("POST", service.predict_path, body=body, headers=JSON)
        return reply.status == 200 and from_json(reply.data)["predictions"][0]["event_id"] == f"e{i}"

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))
