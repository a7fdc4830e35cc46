"""The worker answers beside clients that send slowly, read slowly or not at all, and ends what it has begun."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import gevent
import psutil
import pytest
import urllib3

from deeplambda.service import cooperative_worker
from deeplambda.service.cooperative_worker import Connection
from deeplambda.service.http_worker import LINGER_BYTES
from tests.traffic import eventually
from tests.unit.service.served import MUCH_BYTES

CLIENTS = 64
MEGABYTE = bytes(2**20)


class Served:
    """gunicorn with one worker and the application of `served.py`."""

    def __init__(self, worker: str = "deeplambda.service.cooperative_worker.CooperativeWorker") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = free.getsockname()
        self.url = f"http://{self.address[0]}:{self.address[1]}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-k", worker, "-b", self.url[7:], "tests.unit.service.served:app"],
            stderr=subprocess.DEVNULL,
        )
        assert eventually(lambda: self.get("/") is not None, timeout_s=30)

    def get(self, path: str) -> urllib3.BaseHTTPResponse | None:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return urllib3.request("GET", self.url + path, retries=False, timeout=60)
        return None

    def connected(self, sent: bytes) -> socket.socket:
        connection = socket.create_connection(self.address, timeout=60)
        connection.sendall(sent)
        return connection


@pytest.fixture(scope="module")
def begun() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that have ended once all tests have: each takes seconds, and others may end meanwhile."""
    begun: list[subprocess.Popen[bytes]] = []
    yield begun
    for process in begun:
        process.wait()


@contextlib.contextmanager
def running(begun: list[subprocess.Popen[bytes]], *worker: str) -> Iterator[Served]:
    served = Served(*worker)
    begun.append(served.process)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.process.terminate()  # not killed: its worker would stay


@pytest.fixture(scope="module")
def served(begun: list[subprocess.Popen[bytes]]) -> Iterator[Served]:
    with running(begun) as served:
        yield served


@pytest.fixture(scope="module")
def shedding(begun: list[subprocess.Popen[bytes]]) -> Iterator[Served]:
    with running(begun, "tests.unit.service.served.SheddingWorker") as served:
        yield served


@pytest.fixture
def alone(begun: list[subprocess.Popen[bytes]]) -> Iterator[Served]:
    """A server that no other test has used, or will."""
    with running(begun) as served:
        yield served


def request(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def readable(clients: list[socket.socket]) -> list[socket.socket]:
    return select.select(clients, [], [], 0)[0]


def rest(connection: socket.socket, sent: bytes = b"") -> bytes:
    """What is answered, to `sent` as well, until the connection ends."""
    with contextlib.suppress(ConnectionError):
        if sent:
            connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


def test_slow_senders_and_clients_that_read_nothing_hold_up_nobody(served: Served) -> None:
    with contextlib.ExitStack() as slow:
        for n in range(CLIENTS):
            half = request("/echo", "Content-Length: 1000", method="POST") if n % 2 else request("/")[:-2]
            slow.enter_context(served.connected(half))
        for _ in range(4):
            slow.enter_context(served.connected(request("/much")))
        found = [served.get("/") for _ in range(50)]
    assert all(reply is not None and reply.data == b"/" for reply in found)


@pytest.mark.slow
def test_a_reply_that_nobody_reads_is_dropped_with_its_memory(alone: Served) -> None:
    (worker,) = psutil.Process(alone.process.pid).children()
    before = worker.memory_info().rss
    with alone.connected(request("/much")):
        assert eventually(lambda: worker.memory_info().rss > before + MUCH_BYTES // 2, timeout_s=10, every_s=0.05)
        assert eventually(lambda: worker.memory_info().rss < before + MUCH_BYTES // 2, timeout_s=30)
    reply = alone.get("/")
    assert reply is not None
    assert reply.status == 200


def test_a_request_in_pieces_and_several_in_one_piece_are_answered_in_order(served: Served) -> None:
    content = b"0123456789" * 1000
    whole = request("/echo", f"Content-Length: {len(content)}", method="POST") + content
    with served.connected(whole[:50]) as connection:
        connection.sendall(whole[50:5000])
        connection.sendall(whole[5000:] + request("/a") + request("/b", "Connection: close"))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.index(content) < answer.index(b"/a") < answer.index(b"/b")


@pytest.mark.slow
def test_a_request_begins_with_its_first_byte(served: Served) -> None:
    with served.connected(b"G") as connection:
        served.get("/")  # by whose answer that byte was read
        begun = time.monotonic()
        served.get("/slow")
        waited_s = time.monotonic() - begun
        connection.sendall(request("/since", "Connection: close")[1:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert float(answer.rpartition(b"\n")[2]) >= waited_s


def test_a_request_that_came_with_the_one_before_has_begun_before_it_waits_for_its_turn(served: Served) -> None:
    busy = request("/busy", "Content-Length: 0", method="POST")
    with contextlib.ExitStack() as others:
        for _ in range(16):
            others.enter_context(served.connected(busy * 8))
        with served.connected(busy + request("/since", "Connection: close", method="POST")) as connection:
            answer = rest(connection)
    assert float(answer.rpartition(b"\n")[2]) > 0.05, "16 requests of 0.01 s each came before it"


@pytest.mark.slow
def test_what_comes_after_the_time_of_a_request_is_no_request(served: Served) -> None:
    with served.connected(request("/echo", "Content-Length: 100", method="POST") + b"half") as connection:
        answer = connection.recv(65536)
        assert b"Connection: close" in answer
        assert rest(connection, request("/late")) == b""


@pytest.mark.slow
def test_a_health_check_passes_requests_that_keep_the_loop_busy(served: Served) -> None:
    busy = request("/busy", "Content-Length: 0", method="POST")
    with contextlib.ExitStack() as waiting:
        clients = [waiting.enter_context(served.connected(busy)) for _ in range(CLIENTS)]
        reply = served.get("/")
        answered = readable(clients)
        assert reply is not None
        assert len(answered) < CLIENTS // 2
        assert all(client.recv(65536).startswith(b"HTTP/1.1 200") for client in clients)


def test_of_more_requests_than_may_wait_some_are_refused_and_their_connections_kept(shedding: Served) -> None:
    busy = request("/busy", "Content-Length: 5", method="POST") + b"01234"
    with contextlib.ExitStack() as waiting:
        clients = [waiting.enter_context(shedding.connected(busy)) for _ in range(CLIENTS)]
        statuses = {client: client.recv(65536).split()[1] for client in clients}
        assert set(statuses.values()) == {b"200", b"429"}
        for client in (client for client, status in statuses.items() if status == b"429"):
            client.sendall(request("/after"))
            assert client.recv(65536).endswith(b"/after")


@pytest.mark.slow
def test_what_comes_after_the_time_of_a_refused_request_is_no_request(shedding: Served) -> None:
    half = request("/busy", "Content-Length: 100", method="POST") + b"half"
    with contextlib.ExitStack() as waiting:
        clients = [waiting.enter_context(shedding.connected(half)) for _ in range(CLIENTS)]
        answers = [client.recv(65536) for client in clients]
        assert any(answer.startswith(b"HTTP/1.1 429") for answer in answers)
        assert all(b"Connection: close" in answer for answer in answers)
        assert not any(b"/late" in rest(client, request("/late")) for client in clients)


@pytest.mark.parametrize(
    ("sent", "ends"),
    [
        (request("/busy", "Content-Length: 100", "Expect: 100-continue", method="POST"), False),
        (request("/busy", "Transfer-Encoding: chunked", method="POST") + b"5\r\nab", True),
        (request("/busy", "Content-Length: 5", "Connection: close", method="POST") + b"01234", False),
    ],
)
def test_a_refused_request_that_no_other_can_follow_is_answered_and_its_connection_closed(
    shedding: Served, sent: bytes, *, ends: bool
) -> None:
    with contextlib.ExitStack() as waiting:
        clients = [waiting.enter_context(shedding.connected(sent)) for _ in range(CLIENTS)]
        for client in clients if ends else ():
            client.shutdown(socket.SHUT_WR)
        answers = [rest(client) for client in clients]
        refused = [answer for answer in answers if b"HTTP/1.1 429" in answer]
        assert refused
        assert all(b"HTTP/1.1 200" in answer for answer in answers if answer not in refused)
        assert all(b"Connection: close" in answer for answer in refused)


@pytest.mark.slow
def test_a_refused_upload_is_read_to_a_bound(shedding: Served) -> None:
    head = request("/busy", f"Content-Length: {10**12}", method="POST")
    with contextlib.ExitStack() as waiting:
        clients = [waiting.enter_context(shedding.connected(head)) for _ in range(16)]
        for client in clients:
            with contextlib.suppress(ConnectionError):
                for _ in range(2 * LINGER_BYTES // len(MEGABYTE)):
                    if readable([client]):
                        break
                    client.sendall(MEGABYTE)
        answers = [client.recv(65536) for client in clients]
        assert any(answer.startswith(b"HTTP/1.1 429") for answer in answers)
        assert all(b"Connection: close" in answer for answer in answers)


def test_many_requests_on_one_connection_hold_up_no_other(served: Served) -> None:
    with served.connected(request("/busy") * CLIENTS) as greedy:
        reply = served.get("/busy")
        answered = greedy.recv(2**20, socket.MSG_DONTWAIT).count(b"HTTP/1.1 200")
    assert reply is not None
    assert answered < CLIENTS // 2


def test_refusing_many_requests_of_some_connections_holds_up_no_other(shedding: Served) -> None:
    many = request("/busy", "Content-Length: 0", method="POST") * 1000
    with contextlib.ExitStack() as flood:
        clients = [flood.enter_context(shedding.connected(many)) for _ in range(16)]
        select.select(clients, [], [])
        reply = shedding.get("/")
        assert reply is not None
        answered = sum(client.recv(2**20, socket.MSG_DONTWAIT).count(b"HTTP/1.1 429") for client in readable(clients))
    assert answered < 16 * 1000 // 2


def test_a_wait_for_a_thread_leaves_the_loop_to_others(served: Served) -> None:
    with ThreadPoolExecutor(8) as clients:
        held = [clients.submit(served.get, "/held") for _ in range(8)]

        def all_are() -> bool:
            reply = served.get("/how-many-held")
            return reply is not None and reply.data == b"8"

        assert eventually(all_are, timeout_s=30, every_s=0.05)
        assert not any(each.done() for each in held)
        assert served.get("/let-go") is not None
        assert all(reply is not None and reply.status == 200 for reply in (each.result() for each in held))


@pytest.mark.slow
def test_what_has_begun_is_answered_at_sigterm_and_the_port_is_free(alone: Served) -> None:
    with ThreadPoolExecutor(1) as clients:
        slow = clients.submit(alone.get, "/slow")
        (worker,) = psutil.Process(alone.process.pid).children()
        assert eventually(lambda: len(worker.net_connections()) > 1, timeout_s=10)
        os.kill(alone.process.pid, signal.SIGTERM)
        reply = slow.result()
    assert reply is not None
    assert reply.status == 200
    assert alone.process.wait(timeout=30) == 0
    with socket.socket() as successor:
        successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        successor.bind(alone.address)


@pytest.mark.slow
def test_a_request_of_two_meanings_is_refused_with_a_problem(served: Served) -> None:
    with served.connected(request("/", "Content-Length: 5", "Transfer-Encoding: chunked")) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in answer


def chunked(*headers: str, path: str = "/flask") -> bytes:
    return request(path, "Transfer-Encoding: chunked", *headers, method="POST")


def test_a_chunked_body_that_was_read_keeps_its_connection(served: Served) -> None:
    with served.connected(chunked() + b"5\r\nabcde\r\n0\r\n\r\n") as connection:
        answer = connection.recv(65536)
        assert answer.endswith(b"\r\n\r\n5")
        assert b"Connection: close" not in answer
        connection.sendall(request("/after"))
        assert connection.recv(65536).endswith(b"/after")


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"zz\r\nabc", 400), (b"3\r\nabcdef", 400), (b"5\r\nab", 400), (b"3;=\r\nabc", 400)],
    ids=["no size", "no end of a chunk", "cut off", "no extension"],
)
def test_a_client_that_sends_chunks_wrongly_is_told_so(served: Served, body: bytes, status: int) -> None:
    with served.connected(chunked() + body) as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in answer


@pytest.mark.slow
def test_a_body_that_does_not_come_in_time_is_answered_408(served: Served) -> None:
    with served.connected(chunked() + b"5\r\nab") as connection:
        assert rest(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.slow
def test_a_body_of_tiny_chunks_that_come_at_once_is_refused_before_it_has_taken_long(served: Served) -> None:
    with ThreadPoolExecutor(1) as sender, served.connected(chunked()) as greedy:
        answer = sender.submit(rest, greedy, b"1\r\na\r\n" * 1_000_000).result()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 "), "a reset may have overtaken it"
    with served.connected(chunked() + b"1\r\na\r\n" * 1000 + b"0\r\n\r\n") as modest:
        assert modest.recv(65536).endswith(b"\r\n\r\n1000")


class Full:
    """A socket in which bytes are always there."""

    def __init__(self, now: list[float]) -> None:
        self._now = now

    def settimeout(self, timeout_s: float) -> None:
        assert timeout_s > 0

    def recv(self, size: int) -> bytes:
        self._now[0] += 0.01  # what a parser may take for them
        return bytes(size)


def test_a_request_that_never_waits_lets_others_run_and_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, others = [100.0], list[float]()
    monkeypatch.setattr(cooperative_worker, "time", SimpleNamespace(monotonic=lambda: now[0]))
    connection = Connection(Full(now), idle_s=75)

    def run() -> None:
        while not connection.is_slow:
            others.append(now[0])
            gevent.sleep(1e-6)

    def received() -> int:
        gevent.spawn(run)
        return sum(1 for _ in iter(lambda: connection.recv(10), b""))

    with ThreadPoolExecutor(1) as own_loop:
        count = own_loop.submit(received).result()
    assert connection.is_slow
    assert (count - 1) * 0.01 == pytest.approx(cooperative_worker.REQUEST_WITHIN_S, abs=0.02)
    assert len(others) > 1


def test_a_request_has_one_host(served: Served) -> None:
    for sent, status in (
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
    ):
        with served.connected(sent) as connection:
            assert connection.recv(65536).split()[1] == status
