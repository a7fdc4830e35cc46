"""A flood of single events: what is accepted at three times the capacity, or what comes of it, against four fifths.

Events come as a Poisson process, whether or not those before are answered, on 512 connections. The ratios' names tell
what has come, and how much of it was refused. `benchmarks.load` finds the capacity by 64 clients that wait. Health and
metrics are asked beside the flood, twenty times a second each.
"""

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import urllib3

from benchmarks.load import Flood, flood, images, load
from benchmarks.ratio import Ratio
from deeplambda.config import load_settings

ROUNDS, ROUND_S, CONNECTIONS = 3, 5, 512
BELOW, BEYOND, CAPACITY_CLIENTS = 0.8, 3.0, 64
AIM, BESIDE_MS = 1.5, 50.0
BESIDE = ("/v2/health/live", "/metrics")
LEAST = {BELOW: 0.7, BEYOND: 1.5}
"""Times the capacity that have to come: on two cores wrk may have too little of them for all that it is to send."""
PAUSE_S = 2.0
"""After which a service that has refused takes as many as before."""


def measure() -> list[Ratio]:
    """How long accepted events took, and health and metrics beside them, on the stack that runs."""
    base, body = load_settings().model_url, images(1)
    url, event = f"{base}/v1/models/digits:predict", body["instances"][0]
    load(url, body, clients=CAPACITY_CLIENTS, seconds=ROUND_S)
    came: dict[float, list[float]] = {BELOW: [], BEYOND: []}
    accepted: dict[float, list[Flood]] = {BELOW: [], BEYOND: []}
    beside_ms: dict[str, list[float]] = {path: [] for path in BESIDE}
    for _ in range(ROUNDS):
        fits = load(url, body, clients=CAPACITY_CLIENTS, seconds=ROUND_S)
        if fits.refused:
            raise ValueError(f"{fits.refused} requests of {CAPACITY_CLIENTS} clients that wait were refused")
        for share, floods in accepted.items():
            rate = share * fits.requests_s
            floods.append(_beside(base, url, event, rate, beside_ms if share == BEYOND else {}))
            came[share].append(floods[-1].requests_s / fits.requests_s)
            time.sleep(PAUSE_S)
    if any(each.failed for floods in accepted.values() for each in floods):
        raise ValueError("some requests were neither answered nor refused")
    said = {share: _said(floods, came[share]) for share, floods in accepted.items()}
    for share, least in LEAST.items():
        if min(came[share]) < least:
            raise ValueError(f"{share:g} times the capacity were sent, and fewer than {least:g} came: {said[share]}")
    below, beyond = accepted[BELOW], accepted[BEYOND]
    names = f"accepted events, {said[BEYOND]}", said[BELOW]
    return [_times(percent, below, beyond, *names) for percent in (50, 99)] + [
        Ratio(
            name=f"{path} in a flood, p99",
            value=float(np.percentile(took_ms, 99)) / BESIDE_MS,
            baseline_name="the contract",
            baseline=BESIDE_MS,
            measured=float(np.percentile(took_ms, 99)),
            unit="ms",
            aim=1.0,
            higher_is_better=False,
        )
        for path, took_ms in beside_ms.items()
    ]


def _said(floods: list[Flood], came: list[float]) -> str:
    """What came of a load, and how much of that was refused."""
    refused = statistics.median(each.refused / (len(each.took_ms) + each.refused) for each in floods)
    return f"{statistics.median(came):.1f} times the capacity, {refused:.0%} refused"


def _times(percent: int, below: list[Flood], beyond: list[Flood], name: str, baseline: str) -> Ratio:
    ours, theirs = ([float(np.percentile(each.took_ms, percent)) for each in floods] for floods in (beyond, below))
    return Ratio(
        name=f"{name}, p{percent}",
        value=statistics.median(one / other for one, other in zip(ours, theirs, strict=True)),
        baseline_name=baseline,
        baseline=statistics.median(theirs),
        measured=statistics.median(ours),
        unit="ms",
        aim=AIM,
        higher_is_better=False,
    )


def _beside(base: str, url: str, event: dict[str, Any], rate: float, took_ms: dict[str, list[float]]) -> Flood:
    """A flood, and how long each of these paths took meanwhile."""
    over = threading.Event()

    def ask(path: str) -> None:
        with urllib3.PoolManager(retries=False) as http:
            while not over.wait(0.05):
                begun = time.perf_counter()
                if (status := http.request("GET", base + path).status) != 200:
                    raise RuntimeError(f"{path} was answered {status}")
                took_ms[path].append(1000 * (time.perf_counter() - begun))

    with ThreadPoolExecutor(len(BESIDE)) as pool:
        asking = [pool.submit(ask, path) for path in took_ms]
        try:
            found = flood(url, event, rate=rate, connections=CONNECTIONS, seconds=ROUND_S)
        finally:
            over.set()
        for each in asking:
            each.result()
    return found
