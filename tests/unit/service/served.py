"""A WSGI application for the tests of the worker.

It answers, echoes, sends much, keeps the loop busy, waits for a time or until it is let go on, or says since when a
request has come. A Flask application in it is there for its errors.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask import Flask, request

from deeplambda.service import cooperative_worker, problems
from deeplambda.service.cooperative_worker import CooperativeWorker, result_of
from deeplambda.service.load_shedding import LoadShedder

MUCH_BYTES = 64 * 1024 * 1024
cooperative_worker.REPLY_WITHIN_S = 2.0  # for tests that wait for it
cooperative_worker.REQUEST_WITHIN_S = 2.0
_threads = ThreadPoolExecutor(8)
_held = list[str]()
_let_go = threading.Event()
_flask = Flask(__name__)
problems.register(_flask)


@_flask.post("/flask")
def _read() -> str:
    return str(len(request.get_data()))


class SheddingWorker(CooperativeWorker):
    """A worker in which four requests may wait, and two in a flood."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shedder = LoadShedder(few=2, most=4)

    def sheds(self, asked_for: str, after: int) -> bool:
        return self._shedder.refuses(after)

    def refused(self, request: Any, asked_for: str) -> bytes:
        return b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"


def _hold(path: str) -> None:
    _held.append(path)
    _let_go.wait(60)


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    if path == "/flask":
        return _flask(environ, start_response)  # type: ignore[return-value]
    begun = environ["gunicorn.socket"].begun
    content = {
        "/since": lambda: str(time.monotonic() - begun).encode(),
        "/echo": lambda: environ["wsgi.input"].read(),
        "/much": lambda: bytes(MUCH_BYTES),
        "/how-many-held": lambda: str(len(_held)).encode(),
    }.get(path, lambda: path.encode())()
    if path == "/busy":
        ends = time.thread_time() + 0.01
        while time.thread_time() < ends:
            pass
    if path == "/slow":
        result_of(_threads.submit(time.sleep, 0.5))
    if path == "/held":
        result_of(_threads.submit(_hold, path))
    if path == "/let-go":
        _let_go.set()
    start_response("200 OK", [("Content-Length", str(len(content)))])
    return [content]
