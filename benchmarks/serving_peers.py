"""Single events as JSON against LitServe and Ray Serve: requests a second and p99, from 1 to 256 clients.

All three serve the champion of digits on this machine (`benchmarks.peers`), with one PyTorch thread and batching on.
They run at the same time and wrk (`benchmarks.load`) asks them in turn, so that what else the machine does slows all of
them. Where any of them refuses a request nothing has been measured.
"""

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator

import numpy as np
import urllib3

from benchmarks.load import Load, load
from benchmarks.ratio import Ratio
from deeplambda.config import load_settings

CLIENTS = (1, 8, 64, 256)
PEERS = {"litserve": "LitServe", "ray": "Ray Serve"}
AIM, AIM_P99 = 1.5, 1.0
ROUNDS, ROUND_S = 3, 5.0
_STARTED_WITHIN_S = 180.0


def measure() -> list[Ratio]:
    """The ratios for each peer and number of clients, on the stack that runs."""
    image = b64encode(np.random.default_rng(0).integers(0, 256, 784, np.uint8).tobytes()).decode()
    body = {"instances": [{"image": image}]}
    with contextlib.ExitStack() as running:
        urls = {"ours": f"{load_settings().model_url}/v1/models/digits:predict"}
        urls |= {name: running.enter_context(_peer(name)) for name in PEERS}
        for url in urls.values():
            load(url, body, clients=8, seconds=2)  # caches and threads are as they will be
        found = {
            clients: [
                {name: load(url, body, clients=clients, seconds=ROUND_S) for name, url in urls.items()}
                for _ in range(ROUNDS)
            ]
            for clients in CLIENTS
        }
    if refused := [name for rounds in found.values() for each in rounds for name, one in each.items() if one.refused]:
        raise ValueError(f"{refused[0]} refused requests or broke connections")
    return [ratio for clients, rounds in found.items() for peer in PEERS for ratio in _ratios(clients, peer, rounds)]


def _ratios(clients: int, peer: str, rounds: list[dict[str, Load]]) -> Iterator[Ratio]:
    """The medians over the rounds of both ratios."""
    for what, unit, aim, higher in (
        ("requests_s", "requests/s", AIM, True),
        ("p99_ms", "ms p99", AIM_P99, False),
    ):
        ours, theirs = ([getattr(each[name], what) for each in rounds] for name in ("ours", peer))
        yield Ratio(
            name=f"single events, {clients} clients",
            value=statistics.median(one / other for one, other in zip(ours, theirs, strict=True)),
            baseline_name=PEERS[peer],
            baseline=statistics.median(theirs),
            measured=statistics.median(ours),
            unit=unit,
            aim=aim,
            higher_is_better=higher,
        )


@contextlib.contextmanager
def _peer(name: str) -> Iterator[str]:
    """The URL of a peer that runs until the end of the block. Raises: TimeoutError."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.peers", name, str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(command, env=environment, stdout=sys.stderr, start_new_session=True)
    try:
        url, deadline = f"http://127.0.0.1:{port}/predict", time.monotonic() + _STARTED_WITHIN_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"{PEERS[name]} does not answer; is the extra 'peers' installed?")
            time.sleep(0.5)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    """Whether it answers an empty question, in whatever way: the model is loaded before that."""
    try:
        return urllib3.request("POST", url, json={}, retries=False, timeout=2).status in {400, 422, 500}
    except urllib3.exceptions.HTTPError:
        return False
