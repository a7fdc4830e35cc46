"""The model service with more to do than it can: it says so at once, and keeps its word to those it takes."""

import contextlib
import http.client
import multiprocessing
import select
import socket
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import urllib3
from pydantic_core import from_json, to_json

from deeplambda.adapters.model_service import TIMEOUT_HEADER, ModelClient, Scored, _encode
from deeplambda.config import Settings
from deeplambda.features import row_count
from tests.integration.own_model_service import OwnService, fp32_outputs, images, model_of
from tests.traffic import eventually

ROWS, CLIENTS, DEADLINE_S = 32, 64, 2.0
LONG_S, BESIDE_MS = 60, 50


@dataclass(frozen=True)
class Reply:
    """What one request got."""

    status: int
    version: str | None
    body: bytes


class Client:
    """One kept-alive connection."""

    def __init__(self, service: OwnService, path: str, body: bytes, headers: dict[str, str]) -> None:
        self._connection = http.client.HTTPConnection(*service.address, timeout=30)
        self._asked = path, body, headers

    def ask(self) -> Reply:
        path, body, headers = self._asked
        self._connection.request("POST" if body else "GET", path, body, headers)
        response = self._connection.getresponse()
        content = response.read()
        return Reply(response.status, response.headers["X-Model-Version"], content)


def asked(clients: list[Client], seconds: float, rate: float | None = None) -> list[Reply]:
    """What all clients got: each asks again when it has its answer, or all together `rate` times a second."""
    stop_at, period_s = time.monotonic() + seconds, len(clients) / rate if rate else 0.0

    def repeat(number: int) -> list[Reply]:
        replies, due = [], time.monotonic() + period_s * number / len(clients)
        while time.monotonic() < stop_at:
            threading.Event().wait(max(0.0, due - time.monotonic()))
            replies.append(clients[number].ask())
            due += period_s
        return replies

    with ThreadPoolExecutor(len(clients)) as pool:
        return [reply for replies in pool.map(repeat, range(len(clients))) for reply in replies]


def batches(service: OwnService, count: int, **headers: str) -> list[Client]:
    body, described = _encode(images(ROWS))
    return [Client(service, service.infer_path, body, described | headers) for _ in range(count)]


def events(service: OwnService, path: str, count: int) -> list[Client]:
    body = to_json({"instances": [{"image": b64encode(bytes(784)).decode()}]})
    return [Client(service, path, body, {"Content-Type": "application/json"}) for _ in range(count)]


@contextlib.contextmanager
def slow_clients(service: OwnService) -> Iterator[None]:
    """As many that never send the rest of their request, and as many that ask much and never read the answers; others
    come in the place of those that the service hangs up on."""
    head = f"POST {service.predict_path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    metrics = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    sent = [f"{head}Content-Length: 1000\r\n\r\n{{".encode(), 20 * metrics] * CLIENTS
    done, gone = threading.Event(), select.poll()

    def connected(asks: bytes) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the kernel reads no more than that for it
        connection.connect(service.address)
        connection.sendall(asks)
        gone.register(connection, select.POLLRDHUP)
        return connection

    def keep_open() -> None:
        slow = {(connection := connected(asks)).fileno(): (connection, asks) for asks in sent}
        while not done.is_set():
            for number, _ in gone.poll(100):
                connection, asks = slow.pop(number)
                gone.unregister(number)
                connection.close()
                another = connected(asks)
                slow[another.fileno()] = another, asks
        for connection, _ in slow.values():
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(keep_open)
        try:
            yield
        finally:
            done.set()
        opened.result()


def asked_beside(address: tuple[str, int], seconds: float) -> dict[str, list[float]]:
    """How many milliseconds health and metrics took, 20 times a second; any status but 200 is an error.

    Called in a process of its own: the threads of the crowd's clients wait for one another.
    """
    with urllib3.HTTPConnectionPool(*address, retries=False) as http:
        took_ms: dict[str, list[float]] = {"/v2/health/live": [], "/metrics": []}
        stop_at = time.monotonic() + seconds
        while time.monotonic() < stop_at:
            for path, found in took_ms.items():
                begun = time.monotonic()
                assert http.request("GET", path).status == 200
                found.append(1000 * (time.monotonic() - begun))
            threading.Event().wait(0.05)
    return took_ms


@pytest.mark.parametrize("seconds", [5, pytest.param(LONG_S, marks=pytest.mark.long)])
@pytest.mark.parametrize("beside", [lambda _: contextlib.nullcontext(), slow_clients], ids=["alone", "slow clients"])
def test_three_times_what_fits_is_answered_or_refused_in_time_in_level_memory_beside_health(
    service: OwnService,
    seconds: float,
    beside: Callable[[OwnService], contextlib.AbstractContextManager[None]],
) -> None:
    fits = len(asked(batches(service, 4), seconds=2)) / 2
    clients = batches(service, CLIENTS, **{TIMEOUT_HEADER: str(int(DEADLINE_S * 1000))})
    asked(clients, seconds=1, rate=3 * fits)  # buffers of all connections
    worker = service.worker()
    before = worker.memory_info().rss
    with beside(service), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        watched = pool.submit(asked_beside, service.address, seconds)
        replies = asked(clients, seconds, rate=3 * fits)
    statuses = Counter(reply.status for reply in replies)
    assert set(statuses) == {200, 429}, f"what is late is answered 504: {statuses}"
    p99_ms = {path: float(np.percentile(took_ms, 99)) for path, took_ms in watched.result().items()}
    if seconds >= LONG_S:
        assert max(p99_ms.values()) < BESIDE_MS, p99_ms
    assert (worker.memory_info().rss - before) / 2**20 < 100
    assert asked(batches(service, 1), seconds=0.1)[0].status == 200


def test_a_batch_that_meets_an_overloaded_service_waits_and_is_scored_whole(service: OwnService) -> None:
    features = images(2000)
    client = ModelClient(service.settings, service.name, patience_s=60, part_bytes=64 * 1024)
    with ThreadPoolExecutor(1) as pool:
        crowd = pool.submit(asked, batches(service, CLIENTS), 4)
        scored = client.predict(features, service.featurizer_id)
        assert {reply.status for reply in crowd.result()} == {200, 429}
    assert len(scored.outputs) == len(scored.versions_N) == row_count(features)


def answered(service: OwnService) -> int:
    """How many requests for scores the service has answered."""
    (stats,) = service.request("GET", f"/v2/models/{service.name}/stats").json()["model_stats"]
    count: int = stats["inference_stats"]["success"]["count"]
    return count


def test_a_part_that_takes_longer_than_the_client_waits_is_sent_in_smaller_ones(service: OwnService) -> None:
    features = images(4000)
    begun = time.monotonic()
    whole = ModelClient(service.settings, service.name, part_bytes=2**30).predict(features, service.featurizer_id)
    took_s, before = time.monotonic() - begun, answered(service)
    client = ModelClient(service.settings, service.name, read_timeout_s=took_s / 4, part_bytes=2**30)
    scored = client.predict(features, service.featurizer_id)
    assert answered(service) - before > 1
    np.testing.assert_array_equal(scored.outputs.argmax(axis=1), whole.outputs.argmax(axis=1))


def test_each_row_of_a_large_batch_says_which_version_answered_it(service: OwnService) -> None:
    models = {service.publish(model_of(seed)): model_of(seed) for seed in (13, 14)}
    features, row_bytes = images(640), 4 * 784
    client = ModelClient(service.settings, service.name, part_bytes=16 * row_bytes)

    def swapped_within(version: int) -> Scored | None:
        """A batch whose last rows are this version's and whose first are another's."""
        service.promote(version)
        while (scored := client.predict(features, service.featurizer_id)).versions_N[-1] != version:
            pass
        return scored if set(scored.versions_N) == set(models) else None

    swaps = map(swapped_within, 10 * list(models))  # one may come between two batches
    scored = next(found for found in swaps if found is not None)
    for version, model in models.items():
        answered_N = scored.versions_N == version
        expected = fp32_outputs(model, features).argmax(axis=1)
        np.testing.assert_array_equal(scored.outputs.argmax(axis=1)[answered_N], expected[answered_N])


@pytest.mark.parametrize("swaps", [3, pytest.param(20, marks=pytest.mark.long)])
def test_swaps_under_full_load_fail_nothing_and_every_answer_names_its_version(service: OwnService, swaps: int) -> None:
    versions = [service.publish(model_of(11)), service.publish(model_of(12))]
    done = threading.Event()

    def load(client: Client) -> set[tuple[int, bool]]:
        found = set()
        while not done.is_set():
            reply = client.ask()
            found.add((reply.status, reply.version == str(from_json(reply.body).get("model_version"))))
        return found

    clients = events(service, service.predict_path, 16)
    with ThreadPoolExecutor(len(clients)) as pool:
        loads = [pool.submit(load, client) for client in clients]
        try:
            for swap in range(swaps):
                service.promote(versions[swap % 2])
                assert service.serves(versions[swap % 2])
        finally:
            done.set()
        assert set().union(*(each.result() for each in loads)) == {(200, True)}


@pytest.mark.long
def test_of_two_applications_neither_is_starved_by_the_other(stack: Settings, tmp_path: Path) -> None:
    first, second = OwnService(stack, tmp_path), OwnService(stack, tmp_path)
    names = to_json([first.name, second.name]).decode()
    with first.running(DEEPLAMBDA_APPLICATIONS=names):
        for each in (first, second):
            each.promote(each.publish(model_of(1)))
            ready = f"/v2/models/{each.name}/ready"
            assert eventually(lambda ready=ready: first.request("GET", ready).status == 200)
        crowds = [events(first, each.predict_path, CLIENTS // 2) for each in (first, second)]
        alone = [len(asked(clients, seconds=5)) for clients in crowds]
        with ThreadPoolExecutor(2) as pool:
            both = [len(replies) for replies in pool.map(lambda clients: asked(clients, seconds=5), crowds)]
    assert min(together / one for together, one in zip(both, alone, strict=True)) > 0.4, (alone, both)
