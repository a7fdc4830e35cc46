"""The ports of the stack: which are taken and by whom, and choosing free ones.

Every address is a field of the settings. Chosen ports are written to `<data_dir>/stack.env`, which every later command
reads, so they are chosen once.
"""

import os
import socket
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import psutil
from dotenv import dotenv_values

from deeplambda.config import Settings, is_loopback, port_of

ADDRESS_FIELDS = (
    "kafka_bootstrap",
    "s3_endpoint",
    "mysql_address",
    "metastore_uri",
    "hive_address",
    "model_url",
    "query_url",
)
_FIRST, _LAST = 20000, 29999  # below the range from which Linux gives ports to outgoing connections


class Holder(NamedTuple):
    """The process that listens on a port; pid None where it belongs to somebody else."""

    pid: int | None
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid else self.name


def kafka_controller_port(settings: Settings) -> int:
    """Kafka's own second port, by convention the one after the first."""
    return port_of(settings.kafka_bootstrap) + 1


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT does not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder_of(port: int) -> Holder:
    """Who listens on `port`."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            if connection.pid is None:
                return Holder(None, "a process of another user")
            return Holder(connection.pid, psutil.Process(connection.pid).name())
    return Holder(None, "an unknown process")


def choose_free(taken: set[int], count: int = 1, free: Callable[[int], bool] = is_free) -> int:
    """The first of `count` neighbouring ports that are free and not in `taken`."""
    start = _FIRST + (os.getpid() * 97) % (_LAST - _FIRST - 100)  # two stacks that start together look in two places
    for candidate in chain(range(start, _LAST - count), range(_FIRST, start)):
        if all(port not in taken and free(port) for port in range(candidate, candidate + count)):
            return candidate
    raise RuntimeError(f"no {count} neighbouring free ports between {_FIRST} and {_LAST}")


def read_chosen(data_dir: Path) -> dict[str, str]:
    """What `stack.env` says: environment names and values."""
    return {name: value for name, value in dotenv_values(data_dir / "stack.env").items() if value is not None}


def write_free_ports(settings: Settings) -> None:
    """Give every local address in `settings` a free port, in `stack.env`. An address whose port is free keeps it.

    An address set in the environment stays: the environment would win over the file anyway.
    """
    chosen = read_chosen(settings.data_dir)
    taken: set[int] = set()
    for field in ADDRESS_FIELDS:
        name, address = f"DEEPLAMBDA_{field.upper()}", getattr(settings, field)
        if name in os.environ or not is_loopback(address):
            continue
        count = 2 if field == "kafka_bootstrap" else 1
        port = port_of(address)
        if name not in chosen or not all(is_free(p) for p in range(port, port + count)):
            port = choose_free(taken, count)
            chosen[name] = _with_port(address, port)
        taken.update(range(port, port + count))
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    written = settings.data_dir / f"stack.env.{os.getpid()}"
    written.write_text("".join(f"{name}={value}\n" for name, value in sorted(chosen.items())))
    written.replace(settings.data_dir / "stack.env")


def _with_port(address: str, port: int) -> str:
    head, _, _ = address.rpartition(":")
    return f"{head}:{port}"
