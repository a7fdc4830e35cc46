"""A client that does not read its reply gives its thread back."""

import socket
import threading

import pytest

from deeplambda.service import http_worker
from deeplambda.service.http_worker import Client

MUCH = bytes(range(256)) * 65_536


@pytest.fixture
def ends() -> tuple[Client, socket.socket]:
    """Of one connection: the service's and the client's."""
    ours, theirs = socket.socketpair()
    client = Client(fileno=ours.detach())
    client.setblocking(True)
    return client, theirs


def test_a_reply_that_nobody_reads_is_given_up(
    ends: tuple[Client, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_worker, "REPLY_WITHIN_S", 0.2)
    monkeypatch.setattr(http_worker, "READ_BYTES_S", 2**40)
    client, theirs = ends
    with client, theirs, pytest.raises(BrokenPipeError, match="does not take its reply"):
        client.sendall(MUCH)


def test_a_reply_that_is_read_arrives_whole_and_the_next_request_may_take_its_time(
    ends: tuple[Client, socket.socket],
) -> None:
    client, theirs = ends
    found = bytearray()

    def read() -> None:
        while piece := theirs.recv(2**20):
            found.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with client:
        client.sendall(MUCH)
        assert client.gettimeout() is None
    reader.join()
    theirs.close()
    assert found == MUCH
