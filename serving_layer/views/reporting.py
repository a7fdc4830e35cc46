"""How far the real-time view is behind: metrics to the topic `deeplambda.metrics`, and details for the heartbeat."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from kafka import KafkaConsumer, TopicPartition

from deeplambda.adapters import kafka
from deeplambda.adapters.kafka import Publisher
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.records import topics
from deeplambda.records.predictions import Prediction
from deeplambda.service.metrics import MetricPublisher

_REPORT_S = 10.0
_ASK_S = 1.0
_ANSWER_MS = 5_000


class ViewReporter:
    """Measures the real-time view for `realtime.run`, which makes one each time it connects to Kafka.

    Raises: NotReady when it is made while the broker is away.
    """

    def __init__(self, settings: Settings, publisher: Publisher, reader: KafkaConsumer) -> None:
        self._settings, self._publisher, self._reader = settings, publisher, reader
        self._metrics = MetricPublisher(publisher, layer="serving", part="views")
        self._since = self._asked = time.monotonic()
        self._rows = self._rows_ever = 0
        self._store_s: list[float] = []
        self._event_s: list[float] = []
        self._lag: int | None = None
        self._letters = self._ask_letters()

    def stored(self, rows: int, predictions: Sequence[Prediction], took_s: float) -> None:
        """Count a transaction that `realtime` has committed."""
        self._rows += rows
        self._rows_ever += rows
        self._store_s.append(took_s)
        moment = now()
        self._event_s += [(moment - each.occurred_at).total_seconds() for each in predictions]

    @property
    def details(self) -> dict[str, Any]:
        """What the heartbeat of `views` says: rows stored since the start, and the lag at the last look."""
        return {"rows": self._rows_ever, "lag": self._lag}

    def report_when_due(self) -> None:
        """Read the lag when the last look is a second old, and publish metrics when the last report is ten seconds old.

        `realtime.run` calls it after every poll. Raises: NotReady, within those seconds, when the broker is gone.
        """
        if time.monotonic() - self._asked < _ASK_S:
            return
        self._lag = self._ask_lag()
        self._asked = time.monotonic()
        if self._asked - self._since < _REPORT_S:
            return
        self._metrics.publish("lag", self._lag, "rows")
        letters = self._ask_letters()
        if letters > self._letters:
            self._metrics.publish("dead_letters", letters - self._letters, "rows")
        if self._store_s:
            self._metrics.publish("stored", self._rows, "rows")
            self._metrics.publish("store_p50", float(np.median(self._store_s)) * 1e3, "ms")
        if self._event_s:
            for percent in (50, 99):
                latency_ms = float(np.percentile(self._event_s, percent)) * 1e3
                self._metrics.publish(f"event_to_row_p{percent}", latency_ms, "ms")
        self._publisher.flush()
        self._since, self._rows, self._letters = self._asked, 0, letters
        self._store_s, self._event_s = [], []

    def _ask_lag(self) -> int:
        with kafka.kafka_errors(self._settings):
            assigned = self._reader.assignment()
            known = {
                TopicPartition(topic, number)
                for topic in {each.topic for each in assigned}
                for number in self._reader.partitions_for_topic(topic) or ()
            }
            if known != assigned:
                raise NotReady("the topics have other partitions than before", "nothing to do: they are read anew")
            ends = self._reader.end_offsets(assigned, timeout_ms=_ANSWER_MS)
            return sum(end - self._reader.position(each, timeout_ms=_ANSWER_MS) for each, end in ends.items())

    def _ask_letters(self) -> int:
        """Dead letters of all applications since their topics were made, whichever part wrote them."""
        letters = 0
        with kafka.kafka_errors(self._settings):
            for topic in map(topics.dead_letters, self._settings.applications):
                numbers = self._reader.partitions_for_topic(topic) or ()
                partitions = [TopicPartition(topic, number) for number in numbers]
                letters += sum(self._reader.end_offsets(partitions, timeout_ms=_ANSWER_MS).values())
        return letters
