"""Keeping Spark streams running: signs of life, figures, and a fresh start from the checkpoint after a failure.

A stream that fails is started again in the same session, which takes less than a second; a process that starts Spark
anew takes twenty. One that fails again and again ends the process, for its supervisor to start.
"""

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pyspark.sql.streaming.query import StreamingQuery

from deeplambda.adapters.kafka import Publisher
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.service.heartbeat import Beating, beat
from deeplambda.service.metrics import MetricPublisher

_WATCH_S = 1.0
_BEAT_S = 5.0
_FAILURES = 5
_FAILURES_WITHIN_S = 120
_LOG = logging.getLogger(__name__)


@dataclass
class Stream:
    """One stream of an application. start: begins or resumes it from its checkpoint."""

    application: str
    start: Callable[[], StreamingQuery]
    query: StreamingQuery | None = None
    reported_batch: int = -1
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=_FAILURES))

    def keep_running(self) -> None:
        """Start it when it does not run. Raises: NotReady when it keeps failing."""
        if self.query is not None and (failure := self.query.exception()) is not None:
            self.query = None
            self._count(failure)
        if self.query is None:
            try:
                self.query = self.start()
            except NotReady as exc:
                self._count(exc)

    def _count(self, failure: Exception) -> None:
        self.failures.append(time.monotonic())
        if len(self.failures) == _FAILURES and self.failures[-1] - self.failures[0] < _FAILURES_WITHIN_S:
            raise NotReady(
                f"a stream of {self.application} failed {_FAILURES} times within {_FAILURES_WITHIN_S} s: {failure}",
                "fix what it names; it goes on from its checkpoint",
            ) from failure
        _LOG.warning("a stream of %s failed and starts again from its checkpoint: %s", self.application, failure)

    def report(self, metrics: MetricPublisher) -> None:
        """Measure its last batch, once."""
        progress = self.query and self.query.lastProgress
        if not progress or not progress.numInputRows or progress.batchId == self.reported_batch:
            return
        self.reported_batch = progress.batchId
        metrics.publish("rows", progress.numInputRows, "rows")
        metrics.publish("throughput", progress.processedRowsPerSecond, "rows/s")
        metrics.publish("batch_duration", progress.durationMs["triggerExecution"] / 1e3, "s")


def run_streams(settings: Settings, *, layer: str, part: Beating, streams: Iterable[Stream]) -> None:
    """Run the streams until SIGTERM or SIGINT. Raises: NotReady when one keeps failing."""
    running, stop = list(streams), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Publisher(settings) as publisher:
        metrics_of = {
            stream.application: MetricPublisher(publisher, layer=layer, part=part, application=stream.application)
            for stream in running
        }
        beaten = 0.0
        while not stop.is_set():
            for stream in running:
                stream.keep_running()
                stream.report(metrics_of[stream.application])
            if time.monotonic() - beaten > _BEAT_S:
                beaten = time.monotonic()
                beat(settings, part, streams=len(running))
                _flush(publisher)
            stop.wait(_WATCH_S)
    for stream in running:
        if stream.query is not None:
            stream.query.stop()


def _flush(publisher: Publisher) -> None:
    try:
        publisher.flush()
    except NotReady as exc:  # figures of a broker's absence are not worth a stream
        _LOG.warning("figures not published: %s", exc)
