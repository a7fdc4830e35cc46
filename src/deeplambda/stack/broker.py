"""The configuration that a Kafka broker has both on this machine and in a container."""

from pathlib import Path

from deeplambda.config import Settings
from deeplambda.records import topics


def durable_defaults(settings: Settings) -> dict[str, str | int | Path]:
    """Kafka's names and values; `local.kafka` and `containers.secrets` add listeners and folders."""
    limit, replication = topics.RECORD_LIMIT_BYTES, settings.kafka_replication
    in_sync = topics.in_sync_replicas(replication)
    return {
        "auto.create.topics.enable": "false",
        "message.max.bytes": limit,
        "replica.fetch.max.bytes": limit,
        "fetch.max.bytes": 4 * limit,
        "num.partitions": settings.kafka_partitions,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replication,
        "offsets.topic.num.partitions": 8,
        # By default as long as records: a reader that was stopped for longer would not know that it has missed some.
        "offsets.retention.minutes": 525_600,
        "transaction.state.log.replication.factor": replication,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": replication,
        "share.coordinator.state.topic.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": 2,
        "group.initial.rebalance.delay.ms": 0,  # one machine: there is nobody to wait for
        "num.network.threads": 2,
        "num.io.threads": 4,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,  # 128 MiB by default, taken from the heap
    }
