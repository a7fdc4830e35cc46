"""Event to prediction at 200 events a second, p50, against the same Spark stream without Python.

The baseline copies Kafka to Kafka in Spark alone: source, sink, checkpoint, no Python and no model. The platform's own
stream scores the same load: schema check, transform, model service, prediction. Latency is from the event's time stamp
on its topic to the result's time stamp on its topic, both set by the producers when they send. The two take turns.

Profile (2 cores): of the baseline's micro-batch about half is the checkpoint, for Hadoop's local file system starts a
process to set each file's permissions (seen as forkAndExec under the stream's thread); the rest is planning and the
task. A `mapInArrow` adds 200 ms and more whatever it does: the hand-over to a Python worker and the worker's garbage
collection between tasks. So small batches are scored in the driver (speed_layer/stream/routing.py), where the same
work takes 15 to 25 ms for a batch of 40.
"""

import statistics
from tempfile import TemporaryDirectory

from pydantic_core import from_json
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from benchmarks.ratio import Ratio
from benchmarks.streams import new_topic, send, session, source
from deeplambda.adapters.kafka import consumer, end_offsets
from deeplambda.config import Settings, load_settings
from deeplambda.records import topics

NAME = "event to prediction, p50 at 200/s"
AIM = 2.0
RATE = 200
ROUND_EVENTS = 2_000
ROUNDS = 3


def measure() -> Ratio:
    """Needs a running stack with a champion of digits."""
    settings = load_settings()
    spark, plain, copies = session(settings), new_topic(settings), new_topic(settings)
    with TemporaryDirectory() as checkpoint:
        baseline_stream = (
            source(spark, settings, plain)
            .select("key", "value")
            .writeStream.format("kafka")
            .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
            .option("topic", copies)
            .option("checkpointLocation", checkpoint)
            .start()
        )
        routes = ((plain, copies), (topics.events("digits"), topics.predictions("digits")))
        rounds = [[_median_ms(settings, *route) for route in routes] for _ in range(ROUNDS + 1)][1:]  # one to warm up
        baseline_stream.stop()
    spark.stop()
    baseline, measured = (statistics.median(medians_ms) for medians_ms in zip(*rounds, strict=True))
    return Ratio(
        name=NAME,
        value=statistics.median(scored / copied for copied, scored in rounds),
        baseline_name="Spark stream without Python",
        baseline=baseline,
        measured=measured,
        unit="ms",
        aim=AIM,
        higher_is_better=False,
    )


def _median_ms(settings: Settings, events: str, results: str) -> float:
    starts = {topic: end_offsets(settings, topic) for topic in (events, results)}
    run = send(settings, events, ROUND_EVENTS, RATE)
    sent = _times_ms(settings, events, starts[events], run)

    @retry(
        retry=retry_if_result(lambda found: len(found) < ROUND_EVENTS), stop=stop_after_delay(60), wait=wait_fixed(1)
    )
    def arrived() -> dict[str, int]:
        return _times_ms(settings, results, starts[results], run)

    came = arrived()
    return statistics.median(came[event_id] - sent[event_id] for event_id in sent)


def _times_ms(settings: Settings, topic: str, starts: dict[int, int], run: str) -> dict[str, int]:
    """By event id, the first time stamp on the topic."""
    ends, reader, times = end_offsets(settings, topic), consumer(settings, topic), {}
    for partition in reader.assignment():
        reader.seek(partition, starts[partition.partition])
    while any(reader.position(p) < ends[p.partition] for p in reader.assignment()):
        for records in reader.poll(timeout_ms=500).values():
            for record in records:
                event_id = from_json(record.value)["event_id"]
                if event_id.startswith(run):
                    times.setdefault(event_id, record.timestamp)
    reader.close()
    return times
