"""A gate before S3: passes every request on, and ends whoever sent it at the one that a test names."""

import http.client
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Moment:
    """A moment in a stage's work, by a request to S3.

    request: a regular expression of method and path. nth: of those that match. stored: whether S3 gets the request,
    whose answer then nobody hears; otherwise the moment is just before it.
    """

    request: str
    nth: int = 1
    stored: bool = False


@contextmanager
def s3_gate(endpoint: str, moment: Moment, reached: Callable[[], None]) -> Iterator[str]:
    """A gate before the S3 service at `endpoint`; its address. `reached` is called at the moment, once."""
    behind, lock, seen = urlsplit(endpoint), threading.Lock(), 0

    def is_moment(request: str) -> bool:
        nonlocal seen
        with lock:
            seen += bool(re.search(moment.request, request))
            return seen == moment.nth and bool(re.search(moment.request, request))

    class Gate(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            ends = is_moment(f"{self.command} {unquote(self.path)}")
            if ends and not moment.stored:
                self._end()
                return
            connection = http.client.HTTPConnection(behind.hostname or "", behind.port, timeout=60)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {*_HOP_BY_HOP, "expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if ends:
                self._end()
                return
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in {*_HOP_BY_HOP, "content-length"}:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
            if length is not None and answer.status != http.client.NO_CONTENT:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

        def _end(self) -> None:
            reached()
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a killed client is what this is for."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            """A killed client's connections break."""

    with Server(("127.0.0.1", 0), Gate) as server:
        thread = threading.Thread(target=server.serve_forever, name="s3-gate")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
