"""How far the real-time view is behind: metrics to the topic `deeplambda.metrics`, and details for the heartbeat."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import closing

import numpy as np

from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.kafka_follower import Place
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.service.lag import Lag, TopicEnds, publish_lag
from deeplambda.service.loops import LoopStatus
from deeplambda.service.metrics import MetricPublisher
from serving_layer.views.rows import Row

_REPORT_S = 10.0
_LOOK_S = 1.0
_KEPT = 100_000


class Figures:
    """What the writers of the view have done, added up for `run`; they call it from threads of their own.

    `run` sets the others: behind: by application, what it says that is behind; partitions: by topic, those that the
    writers read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._positions: dict[str, dict[int, int]] = {}
        self._store_s: deque[float] = deque(maxlen=_KEPT)
        self._event_s: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self._rows = 0
        self.rows_ever = 0
        self.behind: dict[str, str] = {}
        self.partitions: dict[str, frozenset[int]] = {}

    def stored(self, taken: int, rows: Sequence[Row], took_s: float) -> None:
        """Count a transaction that a writer has committed, and how many of the rows it took."""
        moment = now()
        event_s = defaultdict[str, list[float]](list)
        for row in rows:
            if not row.replayed:
                event_s[row.application].append((moment - row.occurred_at).total_seconds())
        with self._lock:
            self._rows += taken
            self.rows_ever += taken
            self._store_s.append(took_s)
            for application, seconds in event_s.items():
                self._event_s[application] += seconds

    def at(self, positions: Mapping[Place, int]) -> None:
        """Take in how far a writer has come."""
        with self._lock:
            for (topic, partition), offset in positions.items():
                self._positions.setdefault(topic, {})[partition] = offset

    def position(self, topic: str) -> dict[int, int]:
        """By partition, the offset after the last record that is stored."""
        with self._lock:
            return dict(self._positions.get(topic, {}))

    def drain(self) -> tuple[int, list[float], dict[str, list[float]]]:
        """Since it was last called: rows, seconds of each transaction, by application seconds from each event to its
        row; of the last of these where there were very many, for nobody may have called it while a topic was absent."""
        with self._lock:
            drained = self._rows, list(self._store_s), {name: list(each) for name, each in self._event_s.items()}
            self._rows = 0
            self._store_s.clear()
            self._event_s.clear()
        return drained


def run(settings: Settings, figures: Figures, status: LoopStatus, stop: threading.Event) -> None:
    """Look at the lag every second and publish metrics every ten, until told to stop.

    Raises: NotReady when Kafka is away, after which `Loop` calls it again.
    """
    predictions = {name: topics.predictions(name) for name in settings.applications}
    letters = [topics.dead_letters(name) for name in settings.applications]
    lags = {name: Lag() for name in predictions}
    asking = TopicEnds(settings, [*predictions.values(), *letters])
    with closing(asking) as ends, Publisher(settings) as publisher:
        metrics = {
            name: MetricPublisher(publisher, layer="serving", part="views", application=name) for name in predictions
        }
        of_all = MetricPublisher(publisher, layer="serving", part="views")
        letters_before, since_s = _total(ends.ask(), letters), time.monotonic()
        while not stop.is_set():
            found, at_s = ends.ask(), time.monotonic()
            figures.partitions = {topic: frozenset(found[topic]) for topic in predictions.values()}
            for name, topic in predictions.items():
                lags[name].looked(at_s, ends=found[topic], done=figures.position(topic))
            figures.behind = {name: why for name, lag in lags.items() if (why := lag.behind)}
            if absent := [topic for topic, partitions in found.items() if not partitions]:
                status.waiting(f"Kafka has no topic {absent[0]!r}")
            else:
                status.working(rows=figures.rows_ever, lag=sum(lag.rows for lag in lags.values()))
            if at_s - since_s >= _REPORT_S:
                for name, lag in lags.items():
                    publish_lag(metrics[name], [lag])
                letters_now = _total(found, letters)
                _publish(of_all, metrics, figures, letters_now - letters_before)
                publisher.flush()
                letters_before, since_s = letters_now, at_s
            stop.wait(_LOOK_S)


def _publish(of_all: MetricPublisher, metrics: Mapping[str, MetricPublisher], figures: Figures, letters: int) -> None:
    rows, store_s, event_s = figures.drain()
    if letters:
        of_all.publish("dead_letters", letters, "rows")
    if store_s:
        of_all.publish("stored", rows, "rows")
        of_all.publish("store_p50", float(np.median(store_s)) * 1e3, "ms")
    for application, seconds in event_s.items():
        for percent in (50, 99):
            metrics[application].publish(f"event_to_row_p{percent}", float(np.percentile(seconds, percent)) * 1e3, "ms")


def _total(ends: Mapping[str, Mapping[int, int]], names: Sequence[str]) -> int:
    """Records that the topics have had since they were made."""
    return sum(end for name in names for end in ends[name].values())
