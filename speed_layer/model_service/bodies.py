"""Reading request bodies: whole, bounded one by one and together, and not read further once too large.

A body may be compressed by gzip, of which there may be several members (RFC 1952, section 2.2), or deflate (RFC 9110,
section 8.4.1); the bounds hold for what comes out.
"""

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from flask import Request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from deeplambda.adapters.model_service import BODY_LIMIT_BYTES
from deeplambda.errors import BadInput, Overloaded
from deeplambda.service import problems
from speed_layer.model_service.aside import LARGE_BYTES, Aside

ROOM_BYTES = 8 * BODY_LIMIT_BYTES
"""For all large bodies that are in memory at one time; a request beyond it is answered 429 with Retry-After."""
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_MEMBERS = 256
"""Of a gzip body, at most: what is left is copied after each."""
_PLAIN = "identity"


class BodyReader:
    """Reads request bodies into at most `ROOM_BYTES` of memory; a slow sender occupies only what it has sent so far.

    Small bodies, which the bound on connections bounds, need no room: whoever sends large ones slowly keeps nobody else
    from being answered. aside: where they are inflated.
    """

    def __init__(self, aside: Aside) -> None:
        self._aside, self._lock = aside, threading.Lock()
        self._taken_bytes = 0

    @contextmanager
    def body(self, request: Request, application: str, until: float, *media_types: str) -> Iterator[bytes]:
        """The request's body; its memory counts as free when the block ends, so nothing may use it after that.

        application, until: which it is for, and `time.monotonic()` by which its answer has to be there. media_types:
        those that the route accepts; a body without a media type is accepted too.
        Raises: RequestEntityTooLarge, UnsupportedMediaType, BadInput when it is cut off, RequestTimeout when it comes
        too slowly, Overloaded without room; and as `Aside`.
        """
        if request.mimetype and request.mimetype not in media_types:
            raise UnsupportedMediaType(
                f"media type {request.mimetype!r} is not taken here; send Content-Type: {' or '.join(media_types)}"
            )
        coding = coding_of(request)
        if request.content_length is not None and request.content_length > BODY_LIMIT_BYTES:
            raise _too_large()
        pieces: list[bytes] = []
        room_bytes = 0

        def take_room() -> None:
            nonlocal room_bytes
            size_bytes = sum(map(len, pieces))
            before, room_bytes = room_bytes, size_bytes if size_bytes >= LARGE_BYTES else 0
            self._take(room_bytes - before)

        try:
            for piece in _pieces(request):
                pieces.append(piece)
                take_room()
            if coding != _PLAIN:
                deflated = b"".join(pieces)
                pieces = [self._aside.result(application, lambda: inflated(deflated, coding), LARGE_BYTES, until)]
                take_room()
            yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            self._take(-room_bytes)

    def _take(self, size_bytes: int) -> None:
        with self._lock:
            self._taken_bytes += size_bytes
            if size_bytes > 0 and self._taken_bytes > ROOM_BYTES:
                raise Overloaded("the service has as many requests in memory as it has room for", "try again shortly")


def coding_of(request: Request) -> str:
    """How a body is compressed. Raises: UnsupportedMediaType."""
    given = request.headers.get("Content-Encoding", _PLAIN)
    coding = given.lower().removeprefix("x-")  # RFC 9110, section 8.4.1: `x-gzip` is gzip, in whatever case
    if coding in _WINDOW_BITS or coding == _PLAIN:
        return coding
    raise UnsupportedMediaType(
        f"Content-Encoding {given[:40]!r} is not taken; send one of {', '.join(_WINDOW_BITS)}, or the body uncompressed"
    )


def inflated(content: bytes, coding: str, limit_bytes: int = BODY_LIMIT_BYTES) -> bytes:
    """A body as it was before it was compressed. Raises: BadInput, RequestEntityTooLarge."""
    if coding == _PLAIN:
        return content
    members, left_bytes = list[bytes](), limit_bytes
    while content or not members:
        inflater = zlib.decompressobj(_WINDOW_BITS[coding])
        try:
            members.append(inflater.decompress(content, left_bytes + 1))
        except zlib.error as exc:
            raise BadInput(f"the body is not {coding}: {exc}", "compress all of it") from exc
        left_bytes -= len(members[-1])
        if left_bytes < 0:
            raise _too_large()
        if not inflater.eof:
            raise BadInput(f"the {coding} body is cut off", "send all of it")
        content = inflater.unused_data
        if content and (coding != "gzip" or len(members) == _MEMBERS):
            raise BadInput(f"{len(content)} bytes follow what is {coding}", "compress the body as one")
    return b"".join(members)


def _pieces(request: Request) -> Iterator[bytes]:
    """The body as it comes. Each piece is new memory; the server's stream ends where the body does."""
    stream: BinaryIO = request.environ["wsgi.input"]  # Werkzeug's own wrapper would copy once more
    declared = request.content_length
    if declared is None and "Transfer-Encoding" not in request.headers:
        return
    wanted = BODY_LIMIT_BYTES + 1 if declared is None else declared
    while wanted and (piece := stream.read(min(wanted, LARGE_BYTES))):
        wanted -= len(piece)
        yield piece
    if declared is None and not wanted:
        raise _too_large()
    if declared is not None and wanted:
        how = f"the body ended {wanted} bytes before its Content-Length of {declared}"
        raise problems.cut_off(request.environ, how)


def _too_large() -> RequestEntityTooLarge:
    return RequestEntityTooLarge(f"the body is larger than {BODY_LIMIT_BYTES} bytes; send fewer rows in one request")
