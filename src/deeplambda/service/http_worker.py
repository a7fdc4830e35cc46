"""gunicorn's threaded worker, made safe against clients that send slowly or wrongly, with no proxy in front.

- A request is read for `REQUEST_WITHIN_S` at most, however steadily it trickles; one that is complete is answered.
- A reply that its client does not take within `REPLY_WITHIN_S`, or at `READ_BYTES_S`, is dropped with its connection.
- A reply sent before the whole request was read closes the connection, with "Connection: close".
- A connection is closed in the thread that served it: the lingering close would hold up every other client.
- What gunicorn itself refuses is answered with a problem document, as everything else is.

gunicorn makes one `BoundedWorker` in each worker process, because the query service names it as `worker_class`; the
methods here override its hooks.
"""

import contextlib
import errno
import socket
import threading
import time
from typing import Any

from gunicorn import util
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import TConn, ThreadWorker

from deeplambda.service import problems

REQUEST_WITHIN_S = 10.0
REPLY_WITHIN_S, READ_BYTES_S = 10.0, 64 * 1024
"""For a reply, and for as much more as so many bytes a second take."""
LINGER_S = 2.0
LINGER_BYTES = 32 * 1024 * 1024


def closing_unread(app: Any) -> Any:
    """WSGI middleware: adds "Connection: close" to a reply of `app` that leaves some of the request's body unread.

    gunicorn closes such a connection, but sends the header only on `force_close`; without the header a client would
    send its next request on a connection that is closing.
    """

    def wrapped(environ: dict[str, Any], start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            unread = environ.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" in environ
            # of a slow one `length` is 0 too early
            if unread and (problems.is_slow(environ) or not _is_read(environ["wsgi.input"].reader)):
                start_response.__self__.force_close()
            return start_response(status, headers, exc_info)

        return app(environ, start)

    return wrapped


def _is_read(reader: Any) -> bool:
    """Whether one of gunicorn's readers has come to the end of its body."""
    return reader.parser is None if isinstance(reader, ChunkedReader) else getattr(reader, "length", 1) == 0


class Client(socket.socket):
    """A client's socket, a write to which comes to an end: gunicorn's own would hold its thread."""

    is_slow = False

    def sendall(self, content: Any, flags: int = 0) -> None:
        """Raises: BrokenPipeError, which gunicorn takes for a client that is gone."""
        before = self.gettimeout()
        self.settimeout(REPLY_WITHIN_S + len(content) / READ_BYTES_S)
        try:
            super().sendall(content, flags)
        except TimeoutError as exc:
            raise BrokenPipeError(errno.EPIPE, "the client does not take its reply") from exc
        finally:
            self.settimeout(before)


class Connection(TConn):  # type: ignore[misc]  # gunicorn has no types
    """A connection that can be closed twice, and lingers so that the client of a refused upload can read the reply."""

    closed = False

    def close(self, graceful: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        if graceful:
            util.close_graceful(self.sock, timeout=LINGER_S, max_drain=LINGER_BYTES)
        else:
            util.close(self.sock)


class BoundedWorker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker with the bounds that this module's docstring lists."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._busy_lock = threading.Lock()
        self._busy_since: dict[Connection, float] = {}

    def load_wsgi(self) -> None:
        """Load the application; gunicorn calls this once, in the new worker process."""
        super().load_wsgi()
        self.wsgi: Any = closing_unread(self.wsgi)

    def accept(self, listener: Any) -> None:
        """Accept one client, as a `Connection`; gunicorn's main loop calls this when a listener is readable."""
        try:
            client_sock, client_addr = listener.accept()
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        client = Client(fileno=client_sock.detach())
        client.setblocking(True)
        self.enqueue_req(Connection(self.cfg, client, client_addr, listener.getsockname()))

    def handle(self, conn: Connection) -> Any:
        """Serve one request; gunicorn calls this in a thread of its pool."""
        with self._busy_lock:
            self._busy_since[conn] = time.monotonic()
        try:
            keep = super().handle(conn)
        finally:
            with self._busy_lock:
                del self._busy_since[conn]
        if not keep:
            conn.close(graceful=True)
        return keep

    def murder_keepalived(self, force: bool = False) -> None:
        """Close idle connections, end overdue reading; gunicorn's main loop calls this at least every second."""
        super().murder_keepalived(force)
        too_old = time.monotonic() - REQUEST_WITHIN_S
        with self._busy_lock:
            overdue = [conn for conn, since in self._busy_since.items() if since < too_old]
        for conn in (each for each in overdue if not each.sock.is_slow):
            conn.sock.is_slow = True
            self.log.warning(
                "%s sends too slowly: no more is read of a request after %.0f s", conn.client, REQUEST_WITHIN_S
            )
            with contextlib.suppress(OSError):  # it may have ended by itself
                conn.sock.shutdown(socket.SHUT_RD)

    def is_parent_alive(self) -> bool:
        """Whether gunicorn's parent process runs; gunicorn's main loop calls this at least every second.

        Without it this worker finishes the requests that it has, but frees the port at once for the restarted parent.
        """
        alive: bool = super().is_parent_alive()
        if not alive:
            self.alive = False  # so that it answers with "Connection: close", as gunicorn's own shutdown does
            self.set_accept_enabled(False)
            for listener in self.sockets:
                listener.close()
        return alive

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Reply with a problem; gunicorn calls this for an invalid request and for an error outside the application."""
        with contextlib.suppress(OSError):  # the client may have disconnected
            util.write_nonblock(client, refusal(self.log, addr, exc))


def refusal(log: Any, addr: Any, exc: Exception) -> bytes:
    """The whole reply, a problem, to a request that is invalid or failed outside the application."""
    if isinstance(exc, ParseException):
        log.warning("refused a request from %s: %s", addr, exc)
        reply = problems.of_malformed(exc)
    else:
        log.exception("unforeseen error")
        reply = problems.of_unforeseen()
    problems.name_error(reply)
    reply.headers["Connection"] = "close"
    return f"HTTP/1.1 {reply.status}\r\n{reply.headers}".encode() + reply.get_data()
