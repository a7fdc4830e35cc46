"""Requests a second of two applications that ask one model service at the same time, each over its own alone.

One is always asked by 64 clients, single events as JSON; the other by as many, and by two, whose every request waits
for what the 64 have asked. Both serve the champion of digits. The service is the benchmark's own, on the stack that
runs; wrk (`benchmarks.load`) asks for each application alone, then for both, in each round.
"""

import contextlib
import secrets
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import urllib3
from pydantic_core import to_json

from benchmarks.load import Load, images, load
from benchmarks.ratio import Ratio
from benchmarks.servers import served
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings, load_settings
from deeplambda.errors import NotReady
from deeplambda.loading import find_folder, pack_application
from deeplambda.stack.local.ports import choose_free
from deeplambda.state import outbox, registry
from deeplambda.state.card import CARD, KEPT_ROWS, WEIGHTS, Card, artefact_key, code_key
from examples.digits.application import Digits

AIM = 0.4
ROUNDS, ROUND_S = 5, 3.0


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Clients that ask for one application, each with one request of `rows` events at a time."""

    clients: int
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.clients} clients, " + (f"{self.rows} events each" if self.rows > 1 else "single events")

    def load(self, url: str) -> Load:
        found = load(url, images(self.rows), clients=self.clients, seconds=ROUND_S)
        if found.refused:
            raise ValueError(f"{self} were refused {found.refused} requests")
        return found


MANY = Crowd(clients=64)
BESIDE = (MANY, Crowd(clients=2), Crowd(clients=2, rows=32))


def measure() -> list[Ratio]:
    """The ratios of both applications, for each crowd beside that of 64 clients."""
    with tempfile.TemporaryDirectory() as folder, _service(Path(folder)) as urls:
        for url in urls:
            MANY.load(url)  # caches and threads are as they will be
        return [ratio for crowd in BESIDE for ratio in _ratios(crowd, urls)]


def _ratios(crowd: Crowd, urls: tuple[str, str]) -> Iterator[Ratio]:
    """The medians over the rounds, of the crowd's application and of that of the 64 clients beside it."""
    crowds = (crowd, MANY)
    alone: list[list[Load]] = []
    beside: list[list[Load]] = []
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            alone.append([each.load(url) for each, url in zip(crowds, urls, strict=True)])
            beside.append(list(pool.map(Crowd.load, crowds, urls)))
    for n, (each, other) in enumerate(zip(crowds, reversed(crowds), strict=True)):
        before, after = ([found[n].requests_s for found in rounds] for rounds in (alone, beside))
        yield Ratio(
            name=f"{each}, beside {other}",
            value=statistics.median(one / another for one, another in zip(after, before, strict=True)),
            baseline_name="alone",
            baseline=statistics.median(before),
            measured=statistics.median(after),
            unit="requests/s",
            aim=AIM,
            higher_is_better=True,
        )


@contextlib.contextmanager
def _service(folder: Path) -> Iterator[tuple[str, str]]:
    """The URLs of two applications that one service serves until the end of the block. Raises: TimeoutError."""
    at, names = f"http://127.0.0.1:{choose_free(set())}", (Digits.name, _second(load_settings(), folder))

    def is_ready() -> bool:
        return urllib3.request("GET", f"{at}/v2/health/ready", retries=False, timeout=2).status == 200

    environment = {"DEEPLAMBDA_MODEL_URL": at, "DEEPLAMBDA_APPLICATIONS": to_json(names).decode()}
    failure = f"the model service does not serve {' and '.join(names)}"
    with served(["-m", "speed_layer.model_service"], environment, is_ready, failure):
        first, second = (f"{at}/v1/models/{name}:predict" for name in names)
        yield first, second


def _second(settings: Settings, folder: Path) -> str:
    """The name of a new application, whose code and champion are those of digits."""
    store, platform = ObjectStore(settings), mysql.engine(settings, "platform")
    name = f"{Digits.name}_{secrets.token_hex(4)}"
    (folder / name).mkdir()
    source = (find_folder(Digits.name, settings) / "application.py").read_text()
    (folder / name / "application.py").write_text(source.replace(f'"{Digits.name}"', f'"{name}"'))
    packed = pack_application(name, settings.model_copy(update={"applications_dir": folder}))
    with platform.connect() as connection:
        champion = registry.champion(connection, Digits.name)
    if champion is None:
        raise NotReady(f"{Digits.name} has no champion", f"run 'deeplambda batch run {Digits.name}'")

    def artefacts(version: int) -> Card:
        for artefact in (WEIGHTS, KEPT_ROWS):
            content = store.get(artefact_key(Digits.name, champion.version, artefact))
            store.put(artefact_key(name, version, artefact), content)
        code_sha256 = store.put(code_key(name, packed.code_version), packed.zip_file.read_bytes())
        of_copy = {"application": name, "version": version, "code_version": packed.code_version}
        card = champion.model_copy(update=of_copy | {"code_sha256": code_sha256})
        store.put(artefact_key(name, version, CARD), to_json(card))
        return card

    registry.promote(platform, name, registry.publish(platform, name, secrets.token_hex(8), artefacts))
    with Publisher(settings) as publisher:
        while outbox.relay(platform, publisher):
            pass
    return name
