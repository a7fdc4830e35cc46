import os
import socket
from collections.abc import Iterator

import pytest

from deeplambda.config import Settings, is_loopback, load_settings, port_of
from deeplambda.errors import ConfigurationError
from deeplambda.stack.local.bringup import check_ports
from deeplambda.stack.local.parts import PARTS, part_named
from deeplambda.stack.local.ports import choose_free, holder_of, is_free, read_chosen, write_free_ports


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def chosen_settings(settings: Settings) -> Settings:
    load_settings.cache_clear()
    return load_settings(settings.data_dir)


def test_a_taken_port_is_named_with_the_process_that_holds_it(taken_port: int) -> None:
    assert not is_free(taken_port)
    assert holder_of(taken_port).pid == os.getpid()


def test_starting_on_a_taken_port_is_refused_with_a_remedy(settings: Settings, taken_port: int) -> None:
    elsewhere = settings.model_copy(update={"mysql_address": f"127.0.0.1:{taken_port}"})
    with pytest.raises(ConfigurationError, match=rf"port {taken_port} of mysql .* \(pid {os.getpid()}\).*--free-ports"):
        check_ports(elsewhere, [part_named("mysql")])


def test_free_ports_are_all_different_and_free(settings: Settings) -> None:
    write_free_ports(settings)
    chosen = chosen_settings(settings)
    ports = [port for part in PARTS for port in part.ports(chosen)]
    assert len(set(ports)) == len(ports) == 8  # Kafka has two
    assert all(is_free(port) for port in ports)


def test_free_ports_are_kept_while_they_are_free(settings: Settings) -> None:
    write_free_ports(settings)
    first = read_chosen(settings.data_dir)
    write_free_ports(chosen_settings(settings))
    assert read_chosen(settings.data_dir) == first


def test_a_chosen_port_that_was_taken_since_is_replaced(settings: Settings) -> None:
    write_free_ports(settings)
    chosen = chosen_settings(settings)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port_of(chosen.model_url)))
        other.listen()
        write_free_ports(chosen)
    again = chosen_settings(settings)
    assert again.model_url != chosen.model_url
    assert again.mysql_address == chosen.mysql_address


def test_an_address_of_the_environment_is_left_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAMBDA_QUERY_URL", "http://127.0.0.1:8601")
    write_free_ports(settings)
    assert "DEEPLAMBDA_QUERY_URL" not in read_chosen(settings.data_dir)


def test_ports_that_must_be_neighbours_are() -> None:
    assert choose_free({25001}, count=2, free=lambda port: port in {25000, 25001, 25003, 25007, 25008}) == 25007


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:9092", True),
        ("http://localhost:9000", True),
        ("kafka.example.org:9092", False),
        ("127.0.0.1:9092,127.0.0.1:9095", False),
        (None, False),
    ],
)
def test_only_loopback_addresses_are_served_from_here(address: str | None, expected: bool) -> None:
    assert is_loopback(address) is expected
