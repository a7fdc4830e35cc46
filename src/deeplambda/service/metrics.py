"""Publishing run-time metrics: every layer's processes send theirs to `deeplambda.metrics`."""

from datetime import datetime

from deeplambda.adapters.kafka import Publisher
from deeplambda.clock import now
from deeplambda.records import topics
from deeplambda.records.runtime_metrics import RuntimeMetric


class MetricPublisher:
    """Publishes the metrics of one part of the stack; Kafka has stored them once the publisher was flushed."""

    def __init__(self, publisher: Publisher, *, layer: str, part: str, application: str | None = None) -> None:
        self._publisher = publisher
        self._source = {"layer": layer, "part": part, "application": application}

    def publish(
        self, name: str, value: float, unit: str, at: datetime | None = None, kafka_partition: int | None = None
    ) -> None:
        """Queue one metric. kafka_partition: where it is of one."""
        metric = RuntimeMetric(
            name=name, value=value, unit=unit, at=at or now(), kafka_partition=kafka_partition, **self._source
        )
        self._publisher.send(topics.METRICS, f"{metric.layer}.{metric.part}", metric)
