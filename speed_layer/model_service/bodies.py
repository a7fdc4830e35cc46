"""Reading request bodies: whole, bounded one by one and together, and nothing read of one that is too large."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from deeplambda.adapters.model_service import BODY_LIMIT_BYTES
from deeplambda.errors import BadInput, NotReady

IN_FLIGHT_LIMIT_BYTES = 8 * BODY_LIMIT_BYTES
"""Of all bodies that are in memory at one time; a request beyond it is told to come back."""
_PIECE_BYTES = 256 * 1024


class BodyReader:
    """Hands out bodies as long as there is room for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight_bytes = 0

    @contextmanager
    def body(self, request: Request, *media_types: str) -> Iterator[bytes]:
        """The request's body; its room is given back at the end of the block.

        media_types: what the route takes besides a body without a type.
        Raises: RequestEntityTooLarge, UnsupportedMediaType, BadInput when it is cut off, NotReady without room.
        """
        if request.mimetype and request.mimetype not in media_types:
            raise UnsupportedMediaType(
                f"media type {request.mimetype!r} is not taken here; send Content-Type: {' or '.join(media_types)}"
            )
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise UnsupportedMediaType(
                f"Content-Encoding {request.headers['Content-Encoding']!r} is not taken; send the body uncompressed"
            )
        declared = request.content_length
        if declared is not None and declared > BODY_LIMIT_BYTES:
            raise _too_large()
        reserved = BODY_LIMIT_BYTES if declared is None else declared
        with self._room(reserved):
            yield _chunked(request) if declared is None else _sized(request, declared)

    @contextmanager
    def _room(self, size_bytes: int) -> Iterator[None]:
        with self._lock:
            if self._in_flight_bytes + size_bytes > IN_FLIGHT_LIMIT_BYTES:
                raise NotReady("the service is reading as many requests as it has room for", "try again shortly")
            self._in_flight_bytes += size_bytes
        try:
            yield
        finally:
            with self._lock:
                self._in_flight_bytes -= size_bytes


def _too_large() -> RequestEntityTooLarge:
    return RequestEntityTooLarge(f"the body is larger than {BODY_LIMIT_BYTES} bytes; send fewer rows in one request")


def _sized(request: Request, declared: int) -> bytes:
    # the server's own stream ends where Content-Length does: Werkzeug's wrapper would only copy once more
    body: bytes = request.environ["wsgi.input"].read(declared)
    if len(body) < declared:
        raise BadInput(f"the body ended after {len(body)} of {declared} bytes", "send all of it")
    return body


def _chunked(request: Request) -> bytes:
    if request.headers.get("Transfer-Encoding") is None:
        return b""
    pieces: list[bytes] = []
    size_bytes = 0
    while piece := request.environ["wsgi.input"].read(_PIECE_BYTES):
        size_bytes += len(piece)
        if size_bytes > BODY_LIMIT_BYTES:
            raise _too_large()
        pieces.append(piece)
    return b"".join(pieces)
