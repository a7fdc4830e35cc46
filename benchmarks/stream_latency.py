"""Event to prediction at 200 and 1,000 events a second, against the same Spark stream without Python, and a bare loop.

The first baseline copies Kafka to Kafka in Spark alone: source, sink, checkpoint, no Python and no model. The second is
a loop of kafka-python that scores in its own process (`benchmarks/bare_loop.py`), without anything that a platform is
there for. The platform's own stream scores the same load: schema check, transform, model service, prediction. Latency
is from the event's time stamp on its topic to the result's time stamp on its topic. The three take turns.

Half of a micro-batch was its checkpoint once: Hadoop's local file system starts a process to set a file's permissions
(66 ms a file on a busy machine with two cores, where `LocalCheckpoints.java` takes 2). A `mapInArrow` adds 200 ms and
more; so the driver reads small batches from Kafka itself, without a job of Spark's.

An event waits half a micro-batch for its own to begin, and then for all of that. Medians of one, in ms, on two cores
that others used too; the copy in Spark alone has what is above the line as well:

                                            200/s   1,000/s
    rows                                       10        69
    asking Kafka for the topic's ends           5         5
    planning                                    6         6
    the checkpoint's two files                  2         2
    --------------------------------------------------------
    Spark's `foreachBatch` around Python       14        12
    between Spark's JVM and Python              6         6
    reading from Kafka                          3         4
    check and transform                         1         2
    the model service                           8        21
    answers, publishing                         4         7

More than half of it at 200/s is Spark's own, so three times the bare loop, which has no micro-batches, is out of reach.
"""

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.ratio import Ratio
from benchmarks.streams import latencies_ms, new_topic, source
from deeplambda.config import Settings, load_settings
from deeplambda.records import topics
from speed_layer.stream.query import session

SPARK, LOOP = "Spark stream without Python", "bare loop"
AIMS = {(SPARK, 50): 1.5, (SPARK, 99): 2.0, (LOOP, 50): 3.0}
RATES = (200, 1_000)
ROUND_S = 10
ROUNDS = 3


def measure() -> list[Ratio]:
    """Needs a running stack with a champion of digits."""
    settings = load_settings()
    own = (topics.events("digits"), topics.predictions("digits"))
    routes = {SPARK: (new_topic(settings), new_topic(settings)), LOOP: (new_topic(settings), new_topic(settings))}
    ratios = []
    with _spark_copies(settings, *routes[SPARK]), _bare_loop(*routes[LOOP]):
        for rate in RATES:
            rounds = [
                {
                    name: np.percentile(latencies_ms(settings, *route, rate * ROUND_S, rate), [50, 99])
                    for name, route in {**routes, "ours": own}.items()
                }
                for _ in range(ROUNDS + 1)
            ][1:]  # one to warm up
            ratios += [_ratio(rounds, rate, baseline, percent) for baseline, percent in AIMS]
    return ratios


def _ratio(rounds: list[dict[str, np.ndarray]], rate: int, baseline: str, percent: int) -> Ratio:
    place = (50, 99).index(percent)
    return Ratio(
        name=f"event to prediction, p{percent} at {rate}/s",
        value=statistics.median(each["ours"][place] / each[baseline][place] for each in rounds),
        baseline_name=baseline,
        baseline=statistics.median(each[baseline][place] for each in rounds),
        measured=statistics.median(each["ours"][place] for each in rounds),
        unit="ms",
        aim=AIMS[baseline, percent],
        higher_is_better=False,
    )


@contextmanager
def _spark_copies(settings: Settings, events: str, results: str) -> Iterator[None]:
    with session(settings) as spark, TemporaryDirectory() as checkpoint:
        copying = (
            source(spark, settings, events)
            .select("key", "value")
            .writeStream.format("kafka")
            .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
            .option("topic", results)
            .option("checkpointLocation", f"file:{checkpoint}")
            .start()
        )
        try:
            yield
        finally:
            copying.stop()


@contextmanager
def _bare_loop(events: str, results: str) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.bare_loop", events, results]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            if not process.stdout.readline():
                raise RuntimeError("the bare loop ended before it read; what it said is above")
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    for ratio in measure():
        print(ratio)
