"""Single events as JSON against LitServe and Ray Serve: requests a second and p99, from 1 to 256 clients.

All three serve the champion of digits on this machine (`benchmarks.peers`), with one PyTorch thread and batching on.
Ours and one peer run at a time, and wrk (`benchmarks.load`) asks them in turn, so that what else the machine does slows
both of them. Of the platform's stack only the stores run beside. Where any of them refuses a request nothing has been
measured.
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
ROUNDS, ROUND_S = 3, 4.0
_STARTED_WITHIN_S = 180.0


def measure() -> list[Ratio]:
    """The ratios for each peer and number of clients, on the stack that runs."""
    image = b64encode(np.random.default_rng(0).integers(0, 256, 784, np.uint8).tobytes()).decode()
    body = {"instances": [{"image": image}]}
    ours, ratios = f"{load_settings().model_url}/v1/models/digits:predict", list[Ratio]()
    for name in PEERS:
        with _peer(name) as url:
            for each in (ours, url):
                load(each, body, clients=8, seconds=2)  # caches and threads are as they will be
            for clients in CLIENTS:
                rounds = [
                    tuple(load(each, body, clients=clients, seconds=ROUND_S) for each in (ours, url))
                    for _ in range(ROUNDS)
                ]
                if any(one.refused for both in rounds for one in both):
                    raise ValueError(f"ours or {PEERS[name]} refused requests or broke connections")
                ratios += _ratios(clients, name, rounds)
    return ratios


def _ratios(clients: int, peer: str, rounds: list[tuple[Load, ...]]) -> Iterator[Ratio]:
    """The medians over the rounds of both ratios."""
    for what, unit, aim, higher in (
        ("requests_s", "requests/s", AIM, True),
        ("p99_ms", "ms p99", AIM_P99, False),
    ):
        ours, theirs = ([getattr(one, what) for one in ones] for ones in zip(*rounds, strict=True))
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
