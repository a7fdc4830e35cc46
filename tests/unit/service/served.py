"""A WSGI application for the tests of the worker: it answers, echoes, sends much, keeps the loop busy, or waits."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from deeplambda.service import cooperative_worker
from deeplambda.service.cooperative_worker import CooperativeWorker, result_of

MUCH_BYTES = 64 * 1024 * 1024
cooperative_worker.REPLY_WITHIN_S = 2.0  # for a test that waits for it
_threads = ThreadPoolExecutor(8)
_opened: "Future[None]" = Future()
_gathered: list[str] = []


class ByPath(CooperativeWorker):
    """A worker in which the requests for one path do not wait for all those for another."""

    def asked_for(self, request: Any) -> str:
        path: str = request.path
        return path


def _keep_busy() -> None:
    ends = time.thread_time() + 0.01
    while time.thread_time() < ends:
        pass


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    content = {
        "/echo": lambda: environ["wsgi.input"].read(),
        "/much": lambda: bytes(MUCH_BYTES),
        "/gathered": lambda: b"%d" % len(_gathered),
    }.get(path, path.encode)()
    if path == "/busy":
        _keep_busy()
    if path == "/slow":
        result_of(_threads.submit(time.sleep, 1))
    if path.startswith("/gather/"):
        _gathered.append(path)
        result_of(_opened)
        _keep_busy()
    if path == "/open":
        _opened.set_result(None)
    start_response("200 OK", [("Content-Length", str(len(content)))])
    return [content]
