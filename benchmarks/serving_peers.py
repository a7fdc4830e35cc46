"""Single events as JSON against LitServe and Ray Serve: requests a second and p99, from 1 to 256 clients.

All three serve the champion of digits on this machine (`benchmarks.peers`), with batching on and one PyTorch thread for
a pass. A peer has one worker, as by default, and so one pass at a time; ours has as many passes as there are cores. A
peer with as many workers is not measured. Ours and one peer run at a time, and wrk (`benchmarks.load`) asks them in
turn, so that what else the machine does slows both of them. Of the platform's stack only the stores run beside. Where
any of them refuses a request nothing has been measured.
"""

import contextlib
import statistics
from collections.abc import Iterator

import urllib3

from benchmarks.load import Load, images, load
from benchmarks.ratio import Ratio
from benchmarks.servers import served
from deeplambda.config import load_settings
from deeplambda.stack.local.ports import choose_free

CLIENTS = (1, 8, 64, 256)
PEERS = {"litserve": "LitServe", "ray": "Ray Serve"}
AIM, AIM_P99 = 1.5, 1.0
ROUNDS, ROUND_S = 5, 3.0
WARM_UP_S = 10.0


def measure() -> list[Ratio]:
    """The ratios for each peer and number of clients, on the stack that runs."""
    body = images(1)
    ours, ratios = f"{load_settings().model_url}/v1/models/digits:predict", list[Ratio]()
    for name in PEERS:
        with _peer(name) as url:
            for each in (ours, url):
                load(each, body, clients=64, seconds=WARM_UP_S)  # caches, threads and the stores are as they will be
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
            baseline_name=f"{PEERS[peer]}, one worker",
            baseline=statistics.median(theirs),
            measured=statistics.median(ours),
            unit=unit,
            aim=aim,
            higher_is_better=higher,
        )


@contextlib.contextmanager
def _peer(name: str) -> Iterator[str]:
    """The URL of a peer that runs until the end of the block. Raises: TimeoutError."""
    port = choose_free(set())
    url = f"http://127.0.0.1:{port}/predict"

    def answers() -> bool:  # an empty question, in whatever way: the model is loaded before that
        return urllib3.request("POST", url, json={}, retries=False, timeout=2).status in {400, 422, 500}

    environment = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    failure = f"{PEERS[name]} does not answer; is the extra 'peers' installed?"
    with served(["-m", "benchmarks.peers", name, str(port)], environment, answers, failure):
        yield url
