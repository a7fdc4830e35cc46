"""gunicorn's gevent worker, without monkey-patching: one loop reads, answers and writes, real threads compute.

A connection costs a greenlet, never a thread: clients that send slowly, read slowly or wait hold up nobody.

- A request is read for `REQUEST_WITHIN_S` at most, however steadily it trickles, or however much of it has come; one
  that is complete is answered. Between its bytes others have their turns.
- A body in chunks too small to be worth their parsing is refused.
- A reply that its client does not take within `REPLY_WITHIN_S` is dropped with its connection.
- A request with a body takes its turn after those that have come before, and turns go round what they ask for
  (`asked_for`); one without, such as a health check, does not wait, unless more have come on the same connection.
- Of more requests than a subclass lets wait (`sheds`) the oldest are refused, without the application. Their bodies
  are read, to a bound, so that their connections can be kept.
- A reply sent before the whole request was read closes the connection, with "Connection: close".
- What gunicorn itself refuses is answered with a problem document, as everything else is.

Handlers run on the loop: what takes longer than a few milliseconds belongs in a thread, for which `result_of`
waits.

gunicorn makes one `CooperativeWorker`, or one of a subclass, in each worker process of a service that names it as
`worker_class`.
"""

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import gevent
import gevent.socket
from gevent.hub import Waiter
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn import http, util
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import InvalidHeader, NoMoreData, ParseException
from gunicorn.workers.base import Worker
from gunicorn.workers.ggevent import GeventWorker

from deeplambda.service.http_worker import (
    LINGER_BYTES,
    LINGER_S,
    REPLY_WITHIN_S,
    REQUEST_WITHIN_S,
    closing_unread,
    refusal,
)

_IDLE_AT_STOP_S = 2.0
_TURNS_WITHIN_S = 0.003  # after which connections, health checks on them, are looked at again
_DRAINED_BYTES = 64 * 1024
_FRAMING_BYTES, _FRAMED = 512 * 1024, 64
"""What chunks may add to a body, and one more byte for each so many of it: each chunk takes the loop some 5 µs."""
_CLOSES = b"\r\nConnection: close\r\n"
_WITHOUT_BODY = {"GET", "HEAD"}
_GONE = {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF}

T = TypeVar("T")


def result_of(future: "Future[T]", timeout_s: float | None = None) -> T:
    """The future's result, for which the calling greenlet waits, or the thread where no loop runs.

    Raises: TimeoutError past `timeout_s`, and what the future raises.
    """
    try:
        hub = gevent._hub_local.get_hub_if_exists()
        if hub is None or future.done():
            return future.result(timeout_s)
        waiter = Waiter(hub)
        future.add_done_callback(lambda _: hub.loop.run_callback_threadsafe(waiter.switch, None))
        with gevent.Timeout(timeout_s, TimeoutError):
            waiter.get()
        return future.result()
    finally:
        del future  # else its exception, whose traceback has this frame, would hold itself, and the request's body


class TooManyChunks(ParseException):  # type: ignore[misc]  # gunicorn has no types
    """A body that is hardly more than the sizes of its chunks."""

    def __str__(self) -> str:
        return "the chunks of the body are too small; send larger ones, or the body's Content-Length"


class Connection:
    """A client's socket with the bounds in time that this module's docstring lists; gunicorn's parser reads from it.

    What is written is kept until `flush`, so that head and body of a reply are one packet.
    """

    def __init__(self, sock: gevent.socket.socket, idle_s: float) -> None:
        self._sock, self._idle_s = sock, idle_s
        self._begun: float | None = None
        self._held_since = 0.0
        self._received_bytes = 0
        self._out: list[bytes] = []
        self.is_slow = False

    @property
    def begun(self) -> float:
        """`time.monotonic()` at the first byte of the request that is being answered."""
        return time.monotonic() if self._begun is None else self._begun

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a next request has come."""
        return self._begun is None

    def recv(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end, when the time of the request is over, or of an idle connection."""
        if self.is_slow:  # what comes later is no next request: a parser that was given too little does not know it
            return b""
        left_s = self._idle_s
        if self._begun is not None:
            if time.monotonic() > self._held_since + _TURNS_WITHIN_S:  # where bytes are there, gevent does not wait
                gevent.idle(
                    gevent.get_hub().loop.MAXPRI
                )  # `sleep(0)` has the loop look at connections every fiftieth time alone
                self.hold()
            left_s = self._begun + REQUEST_WITHIN_S - time.monotonic()
            if left_s <= 0:
                self.is_slow = True
                return b""
        self._sock.settimeout(left_s)
        try:
            received: bytes = self._sock.recv(size)
        except TimeoutError:
            self.is_slow = self._begun is not None
            return b""
        self.begin()
        self._received_bytes += len(received)
        return received

    def begin(self) -> None:
        """A request has begun by now: one that came together with the one before is in the parser already."""
        if self._begun is None:
            self._begun = self._held_since = time.monotonic()

    def hold(self) -> None:
        """Others have had their turns: from now on this connection's request has the loop."""
        self._held_since = time.monotonic()

    def worth_parsing(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces of a chunked body as they are read from here. Raises: TooManyChunks."""
        before_bytes, body_bytes = self._received_bytes, 0
        for piece in pieces:
            body_bytes += len(piece)
            if self._received_bytes - before_bytes - body_bytes > _FRAMING_BYTES + body_bytes // _FRAMED:
                raise TooManyChunks
            yield piece

    def sendall(self, content: bytes) -> None:
        """Keep `content` for `flush`."""
        self._out.append(content)

    def send(self, content: bytes) -> None:
        """Send at once: gunicorn's "100 Continue"."""
        self._sock.settimeout(REPLY_WITHIN_S)
        self._sock.sendall(content)

    def flush(self) -> None:
        """Send what was kept. Raises: TimeoutError when the client does not take it, OSError when it is gone."""
        if self._out:
            content, self._out = b"".join(self._out), []
            self.send(content)
        self._begun = None

    def end(self) -> None:
        """Let whoever reads from it find its end."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(gevent.socket.SHUT_RD)


class CooperativeWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's gevent worker with the bounds that this module's docstring lists."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections: set[Connection] = set()
        self._idle: Any = None  # the loop's watcher: called each time that it has looked at all connections
        self._given_at = 0.0
        self._turns: dict[str, deque[Waiter]] = {}  # the next one's first

    def patch(self) -> None:
        """Make the listeners cooperative, and nothing else; gunicorn calls this first in the new worker process."""
        self.sockets: Any = [
            gevent.socket.socket(each.FAMILY, gevent.socket.SOCK_STREAM, fileno=each.sock.detach())
            for each in self.sockets
        ]

    def load_wsgi(self) -> None:
        """Load the application; gunicorn calls this once, in the new worker process."""
        super().load_wsgi()
        self.wsgi: Any = closing_unread(self.wsgi)

    def notify(self) -> None:
        """Tell the parent that this process is alive; without a parent, stop."""
        Worker.notify(self)
        if self.ppid != os.getppid():
            self.log.info("the parent is gone: %s ends", self)
            self.alive = False

    def run(self) -> None:
        """Serve until told to stop.

        1. accept connections until then
        2. free the port at once, so that a successor can have it
        3. answer the requests that are in progress; idle connections have a moment for one that is on its way
        """
        servers = [
            StreamServer(each, handle=partial(self.handle, each), spawn=Pool(self.worker_connections))
            for each in self.sockets
        ]
        for server in servers:
            server.start()
        while self.alive:
            self.notify()
            gevent.sleep(0.5)
        for server in servers:
            server.close()
        stopped = time.monotonic()
        while self._connections and time.monotonic() < stopped + self.cfg.graceful_timeout:
            Worker.notify(self)
            if time.monotonic() > stopped + _IDLE_AT_STOP_S:
                for connection in self._connections:
                    if connection.is_idle:
                        connection.end()
            gevent.sleep(0.05)

    def handle(self, listener: Any, client: gevent.socket.socket, addr: Any) -> None:
        """Serve one connection until it ends; gevent calls this in a greenlet of its own."""
        connection = Connection(client, self.cfg.keepalive)
        parser = http.get_parser(self.cfg, connection, addr)
        self._connections.add(connection)
        request = None
        try:
            name = listener.getsockname()
            for request in parser:
                connection.begin()
                _check(request)
                if isinstance(request.body.reader, ChunkedReader):
                    request.body.reader.parser = connection.worth_parsing(request.body.reader.parser)
                if request.method not in _WITHOUT_BODY or parser.unreader.buf.tell():
                    asked_for = self.asked_for(request)
                    if not self._has_turn(asked_for):
                        keeps = self._read_past(request, connection)
                        reply = self.refused(request, asked_for)
                        connection.sendall(reply if keeps else reply.replace(b"\r\n", _CLOSES, 1))
                        if not keeps:
                            break
                        connection.flush()
                        continue
                    connection.hold()
                self.handle_request(name, request, connection, addr)
                connection.flush()
            self._linger(connection, client)
        except StopIteration:  # gunicorn's word for "close it"
            self._linger(connection, client)
        except NoMoreData:
            pass
        except OSError as exc:
            if exc.errno not in _GONE and not isinstance(exc, TimeoutError):
                self.log.exception("a connection broke")
        except Exception as exc:
            with contextlib.suppress(OSError):  # the client may have disconnected
                connection.send(refusal(self.log, addr, exc))
                self._linger(connection, client)
        finally:
            if connection.is_slow:
                self.log.warning("%s sends too slowly: a request is read for %.0f s", addr, REQUEST_WITHIN_S)
            self._connections.discard(connection)
            util.close(client)

    def asked_for(self, request: Any) -> str:
        """What a request is for: however many ask for one thing, those for another do not wait for all of them."""
        return ""

    def sheds(self, asked_for: str, after: int) -> bool:
        """Whether the first that waits for one thing is refused, so many have come after it."""
        return False

    def refused(self, request: Any, asked_for: str) -> bytes:
        """The whole reply to it."""
        raise NotImplementedError

    @staticmethod
    def _read_past(request: Any, connection: Connection) -> bool:
        """Read the body of a refused request, to a bound; whether another request can follow on its connection."""
        if request.should_close() or request._expected_100_continue or request.method == "HEAD":
            return False
        left, until = LINGER_BYTES, connection.begun + REQUEST_WITHIN_S
        try:
            while piece := request.body.read(_DRAINED_BYTES):
                left -= len(piece)
                if left <= 0 or time.monotonic() > until:
                    return False
        except NoMoreData:
            return False
        return not connection.is_slow

    def _has_turn(self, asked_for: str) -> bool:
        """Whether a request is to be worked on, known once the loop has looked at all connections."""
        waiter = Waiter()
        if self._idle is None:
            self._idle = waiter.hub.loop.idle(priority=waiter.hub.loop.MAXPRI)
        if not self._turns:
            self._idle.start(self._give_turns)
            self._given_at = time.monotonic()
        self._turns.setdefault(asked_for, deque()).append(waiter)
        has_turn: bool = waiter.get()
        return has_turn

    def _give_turns(self) -> None:
        """One; in a flood as many as take about as long as the loop has looked at connections, and refused others."""
        begun, floods = time.monotonic(), False
        for asked_for, waiters in list(self._turns.items()):
            for _ in range(len(waiters)):  # a refused one's connection may have its next request in the queue at once
                if not self.sheds(asked_for, len(waiters) - 1):
                    break
                waiters.popleft().switch(False)
                floods = True
        most_s = min(begun - self._given_at, _TURNS_WITHIN_S) if floods else 0.0
        self._work_on_next()
        while self._turns and time.monotonic() - begun < most_s:
            self._work_on_next()
        self._given_at = time.monotonic()

    def _work_on_next(self) -> None:
        asked_for = next(iter(self._turns))
        waiters = self._turns.pop(asked_for)
        waiter = waiters.popleft()
        if waiters:
            self._turns[asked_for] = waiters  # after the others
        if not self._turns:
            self._idle.stop()
        waiter.switch(True)

    @staticmethod
    def _linger(connection: Connection, client: gevent.socket.socket) -> None:
        """Close so that the client of a refused upload can read the reply."""
        connection.flush()
        util.close_graceful(client, timeout=LINGER_S, max_drain=LINGER_BYTES)


def _check(request: Any) -> None:
    """RFC 9112, section 3.2. Raises: InvalidHeader."""
    if request.version >= (1, 1) and [name for name, _ in request.headers].count("HOST") != 1:
        raise InvalidHeader("HOST")
