"""An MQTT 3.1.1 broker of a test's own, for one client at a time: it says what it is told."""

import socket
import struct
import threading
from types import TracebackType
from typing import IO, Self

_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _SUBSCRIBE, _SUBACK = 1, 2, 3, 4, 8, 9


class Broker:
    """connects: the CONNECT packets' variable headers. subscriptions: how many SUBSCRIBE packets came. acknowledged:
    packet ids, of all connections."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._client: socket.socket | None = None
        self._subscribed = threading.Event()
        self.has_session, self.subscriptions = False, 0
        self.connects: list[bytes] = []
        self.acknowledged: list[int] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def publish(self, topic: str, payload: bytes, number: int = 0, *, retain: bool = False) -> None:
        """Send a message once the client has subscribed; without a number, with QoS 0."""
        assert self._subscribed.wait(20)
        named = struct.pack("!H", len(topic)) + topic.encode() + (struct.pack("!H", number) if number else b"")
        self._say(_PUBLISH << 4 | (2 if number else 0) | retain, named + payload)

    def hang_up(self, *, forget: bool = False) -> None:
        """End the connection; the client's session goes on, or is forgotten."""
        assert self._client is not None
        self.has_session = not forget
        self._subscribed.clear()
        self._client.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                self._client, _ = self._server.accept()
            except OSError:
                return
            with self._client, self._client.makefile("rb") as heard:
                while head := heard.read(1):
                    self._answer(head[0] >> 4, heard.read(_length(heard)))

    def _answer(self, kind: int, body: bytes) -> None:
        if kind == _CONNECT:
            self.connects.append(body)
            self._say(_CONNACK << 4, bytes([self.has_session, 0]))
            if self.has_session:
                self._subscribed.set()
        elif kind == _SUBSCRIBE:
            self.subscriptions += 1
            self._say(_SUBACK << 4, body[:2] + b"\x01")
            self._subscribed.set()
        elif kind == _PUBACK:
            self.acknowledged.append(struct.unpack("!H", body)[0])

    def _say(self, head: int, body: bytes) -> None:
        assert self._client is not None
        left, length = len(body), bytearray()
        while True:
            left, digit = divmod(left, 128)
            length.append(digit | (128 if left else 0))
            if not left:
                break
        self._client.sendall(bytes([head]) + length + body)


def _length(heard: IO[bytes]) -> int:
    total, factor = 0, 1
    while True:
        (digit,) = heard.read(1)
        total, factor = total + (digit & 127) * factor, factor * 128
        if digit < 128:
            return total
