"""Predictions per second over HTTP, in binary batches of 32, against a bare loop over the same model.

The baseline is what one writes first: `model.eval()` in fp32 under `inference_mode`, called in a loop, with PyTorch's
own number of threads or with one, whichever is quicker in that round (on a busy machine it is one). Both score the
same images with the champion of the running stack, turn by turn.

Profile (2 cores with AMX, quiet): of 3.4 ms for a batch over HTTP the pass through the model takes 2.1 ms (bfloat16,
channels_last, one thread; fp32 as built takes 7.3 ms on one thread and 4.2 ms on two), the client 0.5 ms (urllib3,
copying 100 KB), Flask and the codec 0.17 ms; the rest is gunicorn parsing, three hand-overs between threads and the
kernel. In the pass convolutions and max pooling take 38 % each. So the pass was where the time went: tracing and
freezing, `optimize_for_inference` and autocast were slower than a plain bfloat16 copy in channels_last. Two PyTorch
threads are 1.5 times quicker than one on an idle machine and several times slower on a busy one, for each waits at
every layer until the other is scheduled; one thread for each request uses both cores under load.
"""

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import torch

from benchmarks.ratio import Ratio
from deeplambda.adapters.model_service import ModelClient
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_schema
from deeplambda.config import Settings, load_settings
from deeplambda.errors import NotReady
from deeplambda.features import Features, chosen, row_count
from deeplambda.features import call as model_call
from deeplambda.records.featurizer import Featurizer
from deeplambda.state.card import fetch_card
from deeplambda.state.versions import fetch_model, load_code

NAME = "HTTP predictions, binary batches of 32"
AIM = 1.2
BASELINE = "bare fp32 forward loop"
BATCH_ROWS = 32
IMAGES = 1024
ROUNDS = 7
ROUND_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Predictions per second, a rate for each round, and the clients' latencies of a batch."""

    bare: list[float]
    one_connection: list[float]
    two_connections: list[float]
    latencies_ms: list[float]

    def ratio(self, over_http: list[float], name: str) -> Ratio:
        """The median over the rounds: what else runs on the machine slows both of a round."""
        return Ratio(
            name=name,
            value=statistics.median(http / bare for http, bare in zip(over_http, self.bare, strict=True)),
            baseline_name=BASELINE,
            baseline=statistics.median(self.bare),
            measured=statistics.median(over_http),
            unit="predictions/s",
            aim=AIM,
            higher_is_better=True,
        )


def run(settings: Settings) -> Measured:
    """Measure the service of a running stack that has a champion. Raises: NotReady, BadInput."""
    name = settings.applications[0]
    store = ObjectStore(settings)
    clients = [ModelClient(settings, name, patience_s=5) for _ in range(2)]
    version = clients[0].serving()
    if version is None:
        raise NotReady(f"{name} has no champion", f"run 'deeplambda batch run {name}'")
    card = fetch_card(store, name, version)
    featurizer = load_code(store, settings, card).featurizer
    features = _features(featurizer, store)
    batches = [
        chosen(features, slice(at, at + BATCH_ROWS))
        for at in range(0, row_count(features) - BATCH_ROWS + 1, BATCH_ROWS)
    ]
    model = fetch_model(store, featurizer.application, card)

    def forward(batch: Features) -> None:
        with torch.inference_mode():
            model_call(model, {name: torch.from_numpy(array) for name, array in batch.items()})

    def predict(client: ModelClient) -> Callable[[Features], object]:
        return lambda batch: client.predict(batch, featurizer.id)

    default_threads = torch.get_num_threads()

    def bare(threads: int) -> float:
        torch.set_num_threads(threads)
        return _rate([forward], batches)[0]

    measured = Measured(bare=[], one_connection=[], two_connections=[], latencies_ms=[])
    for _ in range(ROUNDS):
        measured.bare.append(max(bare(default_threads), bare(1)))
        rate, latencies_s = _rate([predict(clients[0])], batches)
        measured.one_connection.append(rate)
        measured.latencies_ms.extend(1000 * latency_s for latency_s in latencies_s)
        measured.two_connections.append(_rate([predict(client) for client in clients], batches)[0])
    return measured


def measure() -> Ratio:
    """The ratio for one kept-alive connection, on the stack that runs."""
    measured = run(load_settings())
    return measured.ratio(measured.one_connection, NAME)


def _features(featurizer: Featurizer, store: ObjectStore) -> Features:
    """The first images of the test split, as the application transforms them."""
    application = featurizer.application
    source = next(source for source in application.sources if source.split == "test")
    raw = {name: store.get(f"{application.name}/raw/{name}") for name in source.objects}
    examples = list(islice(application.examples(source, raw), IMAGES))
    schema = payload_schema(application.event)
    rows = [{field: example[field] for field in schema.names} for example in examples]
    return featurizer.features(pa.RecordBatch.from_pylist(rows, schema=schema))


def _rate(callers: list[Callable[[Features], object]], batches: list[Features]) -> tuple[float, list[float]]:
    """Rows per second of all callers together for `ROUND_S`, and how long each call took, in seconds."""
    latencies_s: list[float] = []
    for call in callers:
        for batch in batches[:5]:
            call(batch)  # the processor's caches and the other side's threads are as they will be

    def repeat(call: Callable[[Features], object], stop_at: float) -> None:
        at = 0
        while (begun := time.perf_counter()) < stop_at:
            call(batches[at % len(batches)])
            latencies_s.append(time.perf_counter() - begun)
            at += 1

    begun = time.perf_counter()
    with ThreadPoolExecutor(len(callers)) as pool:
        for repeating in [pool.submit(repeat, call, begun + ROUND_S) for call in callers]:
            repeating.result()
    return len(latencies_s) * BATCH_ROWS / (time.perf_counter() - begun), latencies_s


if __name__ == "__main__":
    measured = run(load_settings())
    print(measured.ratio(measured.one_connection, f"{NAME}, one connection"))
    print(measured.ratio(measured.two_connections, f"{NAME}, two connections"))
    p50_ms, p99_ms = np.percentile(measured.latencies_ms, [50, 99])
    print(f"a batch takes p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms over one connection", file=sys.stderr)
