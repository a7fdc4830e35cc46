"""A backlog of 200,000 events, against what the model service alone takes in binary batches.

The baseline posts features that are ready, in binary batches as the stream sends them, by as many clients as Spark has
slots: all that the stream does beside that is what the ratio shows. Then two slots of Spark against one, on the same
backlog; on a machine of two cores the model service takes its share of both. A shared machine's speed changes by a
third within a minute: the three are measured in turns, and the median of the rounds' ratios is told.

A row takes 162 µs of a core in the model service, 45 in the driver or 80 to 130 in Spark and its workers, and 6 in
Kafka. Both cores are at work (1.87 of 2), so the stream can reach about two thirds of the service alone. The driver had
1.45 of them at work, and took 140 µs a row, while it made one chunk ready, had it scored and published it before the
next. Longer micro-batches, or three chunks at once, change nothing: 50 ms lie between two micro-batches of 3 s.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.ratio import Ratio
from benchmarks.streams import new_topic, send
from deeplambda.adapters.kafka import end_offsets
from deeplambda.adapters.model_service import ModelClient
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings, load_settings
from deeplambda.features import Features
from deeplambda.records import topics
from deeplambda.state.card import fetch_card
from deeplambda.state.versions import load_code
from speed_layer.stream.query import events, session, warm_up
from speed_layer.stream.routing import Router

ROWS = 200_000
AIM, AIM_WORKERS = 0.6, 1.5
SERVICE_BATCH_ROWS = 2_000
SERVICE_ROUNDS = 20
ROUNDS = 3


def measure() -> list[Ratio]:
    """Needs a running stack with a champion of digits."""
    settings = load_settings()
    backlog = new_topic(settings)
    send(settings, backlog, ROWS)
    rounds = [
        (
            _service_rows_per_s(settings, clients=2),
            _drained_rows_per_s(settings, backlog, slots=2),
            _drained_rows_per_s(settings, backlog, slots=1),
        )
        for _ in range(ROUNDS)
    ]
    service, two, one = (statistics.median(column) for column in zip(*rounds, strict=True))
    return [
        Ratio(
            name=f"backlog of {ROWS:,} events",
            value=statistics.median(drained / alone for alone, drained, _ in rounds),
            baseline_name="model service alone, binary batches",
            baseline=service,
            measured=two,
            unit="events/s",
            aim=AIM,
            higher_is_better=True,
        ),
        Ratio(
            name="backlog by two slots of Spark",
            value=statistics.median(by_two / by_one for _, by_two, by_one in rounds),
            baseline_name="by one",
            baseline=one,
            measured=two,
            unit="events/s",
            aim=AIM_WORKERS,
            higher_is_better=True,
        ),
    ]


def _drained_rows_per_s(settings: Settings, backlog: str, slots: int) -> float:
    """From the first batch, Python's workers being there, to the last."""
    results = topics.predictions("digits")
    before = sum(end_offsets(settings, results).values())
    settings_of_slots = settings.model_copy(update={"spark_master": f"local[{slots},4]"})
    with session(settings_of_slots) as spark, TemporaryDirectory() as checkpoint:
        warm_up(spark)
        router = Router(spark, settings, "digits", backlog)
        started_s = time.perf_counter()
        query = (
            events(spark, settings, backlog, "earliest")
            .writeStream.foreachBatch(router)
            .option("checkpointLocation", f"file:{checkpoint}")
            .trigger(availableNow=True)
            .start()
        )
        query.awaitTermination()
        took_s = time.perf_counter() - started_s
        if failure := query.exception():
            raise failure
    made = sum(end_offsets(settings, results).values()) - before
    if made < ROWS:
        raise RuntimeError(f"{made:,} predictions of {ROWS:,} events")
    return ROWS / took_s


def _service_rows_per_s(settings: Settings, clients: int) -> float:
    client = ModelClient(settings, "digits")
    version = client.serving()
    if version is None:
        raise RuntimeError("digits has no champion; run 'deeplambda batch run digits'")
    store = ObjectStore(settings)
    card = fetch_card(store, "digits", version)
    featurizer = load_code(store, settings, card).featurizer
    randomness = np.random.default_rng(0)
    batch: Features = {
        name: randomness.random((SERVICE_BATCH_ROWS, *tensor.shape), np.float32)
        for name, tensor in card.features.items()
    }

    def post() -> None:
        for _ in range(SERVICE_ROUNDS):
            client.predict(batch, featurizer.id)

    client.predict(batch, featurizer.id)
    started_s = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for posting in [pool.submit(post) for _ in range(clients)]:
            posting.result()
    return clients * SERVICE_ROUNDS * SERVICE_BATCH_ROWS / (time.perf_counter() - started_s)


if __name__ == "__main__":
    for ratio in measure():
        print(ratio)
