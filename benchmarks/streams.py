"""What the stream's benchmarks need: topics of their own, events to send, results to find again."""

import secrets
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import numpy as np
from kafka import KafkaAdminClient, KafkaProducer
from pydantic_core import from_json, to_json
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from deeplambda.adapters.kafka import consumer, end_offsets
from deeplambda.clock import now
from deeplambda.config import Settings


def new_topic(settings: Settings) -> str:
    """A fresh topic as an events topic is: with as many partitions, and with times of the broker's."""
    name = f"benchmark-{secrets.token_hex(4)}"
    admin = KafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    configs = {"message.timestamp.type": "LogAppendTime"}
    admin.create_topics(
        {name: {"num_partitions": settings.kafka_partitions, "replication_factor": 1, "configs": configs}}
    )
    admin.close()
    return name


def send(settings: Settings, topic: str, events: int, rate: float | None = None) -> str:
    """Send digits, `rate` a second or as fast as they go; returns what their ids begin with."""
    run, images = f"benchmark-{secrets.token_hex(4)}", np.random.default_rng(0).integers(0, 256, (64, 784), np.uint8)
    texts = [b64encode(image.tobytes()).decode() for image in images]
    linger_ms = 0 if rate else 20
    producer = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap, acks="all", linger_ms=linger_ms)
    started = time.monotonic()
    for n in range(events):
        event_id = f"{run}-{n}"
        event = {"event_id": event_id, "occurred_at": now(), "image": texts[n % len(texts)]}
        producer.send(topic, key=event_id.encode(), value=to_json(event))
        if rate:
            time.sleep(max(0.0, started + (n + 1) / rate - time.monotonic()))
    producer.flush()
    producer.close()
    return run


def latencies_ms(settings: Settings, events: str, results: str, count: int, rate: float) -> list[int]:
    """From an event's time stamp on its topic to its result's, of `count` events that are sent now, `rate` a second.

    Raises: TimeoutError when a result is missing a minute after the last event.
    """
    starts = {topic: end_offsets(settings, topic) for topic in (events, results)}
    run = send(settings, events, count, rate)
    sent = _times_ms(settings, events, starts[events], run)
    arrived = Retrying(
        retry=retry_if_result(lambda found: len(found) < count),
        stop=stop_after_delay(60),
        wait=wait_fixed(1),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else {},
    )
    came: dict[str, int] = arrived(lambda: _times_ms(settings, results, starts[results], run))
    if len(came) < count:
        raise TimeoutError(f"{count - len(came)} of {count} results are missing on {results}")
    return [came[event_id] - sent[event_id] for event_id in sent]


def source(spark: SparkSession, settings: Settings, topic: str, batch_rows: int = 20_000) -> DataFrame:
    """Spark's own Kafka source."""
    return (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
        .option("subscribe", topic)
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", batch_rows)
        .load()
        .select("key", "value", "topic", "partition", "offset", "timestamp")
    )


def drained_rows_per_s(settings: Settings, start: Callable[[], StreamingQuery], *, results: str, rows: int) -> float:
    """Rows a second while a stream works off its backlog; the first batch warms up and does not count.

    Raises: RuntimeError when fewer than `rows` results have come to the topic `results`.
    """
    before = sum(end_offsets(settings, results).values())
    query = start()
    query.awaitTermination()
    if failure := query.exception():
        raise failure
    if (made := sum(end_offsets(settings, results).values()) - before) < rows:
        raise RuntimeError(f"{made:,} results of {rows:,} events")
    batches = [(taken, progress) for progress in query.recentProgress if (taken := _rows(progress))][1:]
    return sum(taken for taken, _ in batches) / sum(b.durationMs["triggerExecution"] / 1e3 for _, b in batches)


def _rows(progress: Any) -> int:
    """By the offsets: of what the driver reads itself, Spark counts no rows."""
    (source,) = from_json(progress.json)["sources"]
    starts, ends = ((source[name] or {}) for name in ("startOffset", "endOffset"))
    return sum(end - starts.get(topic, {}).get(p, 0) for topic, offsets in ends.items() for p, end in offsets.items())


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
