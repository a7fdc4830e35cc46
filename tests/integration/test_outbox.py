"""A broker that refuses a record once: what is sent meanwhile neither overtakes it in the outbox nor has it lost."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from sqlalchemy import Engine, create_engine, text

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher, end_offsets
from deeplambda.adapters.kafka_ranges import RangeReader
from deeplambda.config import Settings
from deeplambda.state import outbox
from deeplambda.state.tables import OUTBOX
from tests.traffic import new_topic

PRODUCE = 0
OVERTAKEN_WITHIN_S = 0.5
LARGE = "x" * 200_000
"""Two such records are no batch."""


class Wire:
    """A way to the broker that spoils the first record with `spoilt` in it: the broker finds its checksum wrong.

    It is passed on once another record came behind it, or none did for a while.
    """

    def __init__(self, settings: Settings, spoilt: bytes) -> None:
        host, port = settings.kafka_bootstrap.split(":")
        self._broker, self._spoilt = (host, int(port)), spoilt
        self._door = socket.create_server((host, 0))
        self.settings = settings.model_copy(update={"kafka_bootstrap": f"{host}:{self._door.getsockname()[1]}"})
        self.holds = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._door.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, broker = self._door.accept()[0], socket.create_connection(self._broker)
                threading.Thread(target=self._requests, args=(client, broker), daemon=True).start()
                threading.Thread(target=self._answers, args=(client, broker), daemon=True).start()

    def _requests(self, client: socket.socket, broker: socket.socket) -> None:
        for frame in _frames(client):
            broker.sendall(frame if self.holds.is_set() else self._spoiled(frame, client))

    def _spoiled(self, frame: bytes, client: socket.socket) -> bytes:
        if struct.unpack(">h", frame[4:6])[0] != PRODUCE or self._spoilt not in frame:
            return frame
        self.holds.set()
        client.settimeout(OVERTAKEN_WITHIN_S)
        with suppress(TimeoutError):
            client.recv(1, socket.MSG_PEEK)
        client.settimeout(None)
        return frame.replace(self._spoilt, bytes(len(self._spoilt)))

    def _answers(self, client: socket.socket, broker: socket.socket) -> None:
        real, own = (host.encode() + struct.pack(">i", port) for host, port in (self._broker, self._door.getsockname()))
        for frame in _frames(broker):
            client.sendall(frame.replace(real, own))  # else the client goes to the broker itself


def _frames(peer: socket.socket) -> Iterator[bytes]:
    reader = peer.makefile("rb")
    while size := reader.read(4):
        yield size + reader.read(int.from_bytes(size))


@pytest.fixture
def wire(stack: Settings) -> Iterator[Wire]:
    made = Wire(stack, b"first")
    yield made
    made.close()


@pytest.fixture
def own_database(stack: Settings) -> Iterator[Engine]:
    """Where nobody else relays the outbox."""
    root = mysql.engine(stack, "root")
    with root.begin() as connection:
        connection.execute(text("CREATE DATABASE own_outbox"))
    engine = create_engine(root.url.set(database="own_outbox"))
    OUTBOX.create(engine)
    yield engine
    engine.dispose()
    with root.begin() as connection:
        connection.execute(text("DROP DATABASE own_outbox"))


def stored(settings: Settings, topic: str) -> list[bytes]:
    with closing(RangeReader(settings, topic)) as reader:
        return [row["key"] for chunk in reader.chunks({0: (0, end_offsets(settings, topic)[0])}) for row in chunk]


def test_the_outbox_keeps_its_order_when_a_broker_refuses_a_record_once(
    stack: Settings, wire: Wire, own_database: Engine
) -> None:
    topic = new_topic(stack, 1)
    with own_database.begin() as connection:
        for key in ("first", "second"):
            outbox.record(connection, topic, key, LARGE)
    with Publisher(wire.settings) as publisher:
        assert outbox.relay(own_database, publisher) == 2
    assert wire.holds.is_set(), "the broker should have refused one"
    assert stored(stack, topic) == [b"first", b"second"]


def test_a_record_that_a_broker_refuses_once_is_not_lost(stack: Settings, wire: Wire) -> None:
    topic = new_topic(stack, 1)
    with Publisher(wire.settings) as publisher:
        publisher.send(topic, "first", {})
        assert wire.holds.wait(10)
        publisher.send(topic, "second", {})
    assert sorted(stored(stack, topic)) == [b"first", b"second"]
