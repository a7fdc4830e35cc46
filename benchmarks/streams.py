"""What both stream benchmarks need: topics of their own, events to send, and a Spark session."""

import secrets
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from kafka import KafkaAdminClient, KafkaProducer
from pydantic_core import to_json
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from deeplambda.adapters.lake import spark_session
from deeplambda.clock import now
from deeplambda.config import Settings


def session(settings: Settings) -> SparkSession:
    """A session like the stream's own."""
    conf = {"spark.driver.memory": "512m", "spark.sql.execution.arrow.maxRecordsPerBatch": "2000"}
    return spark_session(settings, "benchmark", conf)


def new_topic(settings: Settings) -> str:
    """A fresh topic with as many partitions as an events topic has."""
    name = f"benchmark-{secrets.token_hex(4)}"
    admin = KafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    admin.create_topics({name: {"num_partitions": settings.kafka_partitions, "replication_factor": 1}})
    admin.close()
    return name


def send(settings: Settings, topic: str, events: int, rate: float | None = None) -> str:
    """Send digits, `rate` a second or as fast as they go; returns what their ids begin with."""
    from base64 import b64encode

    run, images = f"benchmark-{secrets.token_hex(4)}", np.random.default_rng(0).integers(0, 256, (64, 784), np.uint8)
    texts = [b64encode(image.tobytes()).decode() for image in images]
    producer = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap, acks="all")
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


def source(spark: SparkSession, settings: Settings, topic: str, batch_rows: int = 20_000) -> DataFrame:
    """The Kafka source as the platform's stream has it."""
    return (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
        .option("subscribe", topic)
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", batch_rows)
        .load()
        .select("key", "value", "topic", "partition", "offset", "timestamp")
    )


def drained_rows_per_s(start: Callable[[], StreamingQuery]) -> float:
    """Rows a second while a stream works off its backlog; the first batch warms up and does not count."""
    query = start()
    query.awaitTermination()
    if failure := query.exception():
        raise failure
    batches: list[Any] = [progress for progress in query.recentProgress if progress.numInputRows][1:]
    return sum(b.numInputRows for b in batches) / sum(b.durationMs["triggerExecution"] / 1e3 for b in batches)
