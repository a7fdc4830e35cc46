"""A WSGI application for the tests of the worker.

It answers, echoes, sends much, keeps the loop busy, waits, or says since when a request has come.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from deeplambda.service import cooperative_worker
from deeplambda.service.cooperative_worker import result_of

MUCH_BYTES = 64 * 1024 * 1024
cooperative_worker.REPLY_WITHIN_S = 2.0  # for a test that waits for it
_threads = ThreadPoolExecutor(8)


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    begun = environ["gunicorn.socket"].begun
    content = {
        "/since": lambda: str(time.monotonic() - begun).encode(),
        "/echo": lambda: environ["wsgi.input"].read(),
        "/much": lambda: bytes(MUCH_BYTES),
    }.get(path, lambda: path.encode())()
    if path == "/busy":
        ends = time.thread_time() + 0.01
        while time.thread_time() < ends:
            pass
    if path == "/slow":
        result_of(_threads.submit(time.sleep, 1))
    start_response("200 OK", [("Content-Length", str(len(content)))])
    return [content]
