"""Keeping Spark streams running: heartbeats, metrics, and a restart from the checkpoint after a failure.

A stream that fails is started again in the same session, which takes less than a second; starting Spark in a
new process takes twenty. A stream that keeps failing ends the process, which its supervisor or container engine
restarts.
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
from deeplambda.service.heartbeat import HeartbeatPart, write_heartbeat
from deeplambda.service.metrics import MetricPublisher

_WATCH_S = 1.0
_BEAT_S = 5.0
_FAILURES = 5
_FAILURES_WITHIN_S = 120
_LOG = logging.getLogger(__name__)


@dataclass
class Stream:
    """One stream of an application, which `run_streams` keeps running.

    start: begins the query or resumes it from its checkpoint. reported_batch: the last batch whose metrics were sent.
    """

    application: str
    start: Callable[[], StreamingQuery]
    query: StreamingQuery | None = None
    reported_batch: int = -1
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=_FAILURES))

    def keep_running(self) -> None:
        """Start the query if it is not running; `run_streams` calls this every second.

        Raises: NotReady when it keeps failing.
        """
        if self.query is not None and (failure := self.query.exception()) is not None:
            self.query = None
            self._count_failure(failure)
        if self.query is None:
            try:
                self.query = self.start()
            except NotReady as exc:
                self._count_failure(exc)

    def _count_failure(self, failure: Exception) -> None:
        self.failures.append(time.monotonic())
        if len(self.failures) == _FAILURES and self.failures[-1] - self.failures[0] < _FAILURES_WITHIN_S:
            raise NotReady(
                f"a stream of {self.application} failed {_FAILURES} times within {_FAILURES_WITHIN_S} s: {failure}",
                "fix the cause; the stream resumes from its checkpoint",
            ) from failure
        _LOG.warning("a stream of %s failed and starts again from its checkpoint: %s", self.application, failure)

    def report(self, metrics: MetricPublisher) -> None:
        """Publish the metrics of the last finished batch, once for each batch."""
        progress = self.query and self.query.lastProgress
        if not progress or not progress.numInputRows or progress.batchId == self.reported_batch:
            return
        self.reported_batch = progress.batchId
        metrics.publish("rows", progress.numInputRows, "rows")
        metrics.publish("throughput", progress.processedRowsPerSecond, "rows/s")
        metrics.publish("batch_duration", progress.durationMs["triggerExecution"] / 1e3, "s")


def run_streams(settings: Settings, *, layer: str, part: HeartbeatPart, streams: Iterable[Stream]) -> None:
    """Run the streams until SIGTERM or SIGINT: the main loop of the parts `stream` and `archive`.

    Raises: NotReady when a stream keeps failing.
    """
    running, stop = list(streams), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Publisher(settings) as publisher:
        metrics_of = {
            stream.application: MetricPublisher(publisher, layer=layer, part=part, application=stream.application)
            for stream in running
        }
        last_beat_s = 0.0
        while not stop.is_set():
            for stream in running:
                stream.keep_running()
                stream.report(metrics_of[stream.application])
            if time.monotonic() - last_beat_s > _BEAT_S:
                last_beat_s = time.monotonic()
                write_heartbeat(settings, part, streams=len(running))
                _flush(publisher)
            stop.wait(_WATCH_S)
    for stream in running:
        if stream.query is not None:
            stream.query.stop()


def _flush(publisher: Publisher) -> None:
    try:
        publisher.flush()
    except NotReady as exc:  # losing metrics while the broker is away must not end the streams
        _LOG.warning("metrics not published: %s", exc)
