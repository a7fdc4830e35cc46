"""Keeping Spark streams running: each on its own, so that one application's trouble stops no other's stream.

A stream that fails resumes from its checkpoint in the same session, which takes less than a second; a process that
starts Spark anew takes twenty. After each failure in a row its pause doubles, up to a minute. The process ends, and the
supervisor or container engine starts it again, only when Spark itself is gone or every stream has failed for long.
"""

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JNetworkError
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from deeplambda.adapters.kafka import Publisher
from deeplambda.config import Settings
from deeplambda.errors import DeepLambdaError, NotReady
from deeplambda.service.heartbeat import FAILING, HeartbeatPart, write_heartbeat
from deeplambda.service.loops import Loop, LoopStatus, in_one_line
from deeplambda.service.metrics import MetricPublisher

_WATCH_S = 1.0
_BEAT_S = 5.0
_STOP_WITHIN_S = 10.0
_SLOW_AFTER_S = 120.0
GIVE_UP_AFTER_S = 900.0
"""Once every stream has failed for this long, a fresh process is tried: its own state may be what is broken."""

_LOG = logging.getLogger(__name__)
# The last line of a Python traceback, of any class but those that Spark wraps others in.
_PYTHON_ERROR = re.compile(
    r"^(?!pyspark|py4j|org\.|java)(?:(?:\w+\.)+(\w+)|(\w+(?:Error|Exception))): (.+)$", re.MULTILINE
)


@dataclass
class Stream:
    """One stream of an application, which `run_streams` keeps running.

    start: begins the query or resumes it from its checkpoint; whatever must be loaded or created first is done in it,
    for it runs on the stream's own thread. reported_batch: the last batch whose metrics were sent.
    """

    application: str
    start: Callable[[], StreamingQuery]
    reported_batch: int = -1

    def run(self, publish: Callable[[Any], None], status: LoopStatus, stop: threading.Event) -> None:
        """Start the query and watch it until `stop` is set: the work of the stream's `Loop`.

        publish: called with the progress of each batch that has had rows. Raises: what ended the query.
        """
        query = self.start()
        batch_since_s = time.monotonic()
        seen: Any = None
        try:
            while not stop.is_set():
                if (failure := query.exception()) is not None:
                    raise failure
                if not query.isActive:
                    raise NotReady("the query ended without an error")
                progress, busy = query.lastProgress, query.status["isTriggerActive"]
                moved = progress is not None and progress.timestamp != seen
                if moved or (progress is not None and not busy):
                    batch_since_s, seen = time.monotonic(), progress.timestamp
                    status.working()
                elif (slow_s := time.monotonic() - batch_since_s) > _SLOW_AFTER_S:
                    # Only said, not stopped: a large batch of a slow model would else begin again and again.
                    status.waiting(f"no batch has ended for {slow_s // 60 * 60:.0f} s and more")
                else:
                    status.alive()
                if moved and progress.numInputRows and progress.batchId != self.reported_batch:
                    self.reported_batch = progress.batchId
                    publish(progress)
                stop.wait(_WATCH_S)
        finally:
            query.stop()


def run_streams(
    spark: SparkSession,
    settings: Settings,
    *,
    layer: str,
    part: HeartbeatPart,
    streams: Iterable[Stream],
    beside: Mapping[str, Callable[[LoopStatus, threading.Event], None]] | None = None,
) -> None:
    """Run the streams until SIGTERM or SIGINT: the main loop of the parts `stream` and `archive`.

    beside: other work by name, in loops of its own.
    Raises: NotReady when Spark is gone, or every stream keeps failing.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Publisher(settings) as publisher:
        loops: list[tuple[Stream, Loop]] = []
        for stream in streams:
            metrics = MetricPublisher(publisher, layer=layer, part=part, application=stream.application)
            loops.append((stream, _loop(stream, metrics, stop)))
        others = [Loop(name, work, stop, said=why_failed) for name, work in (beside or {}).items()]
        for loop in (*(loop for _, loop in loops), *others):
            loop.start()
        while not stop.is_set():
            _check_spark(spark)
            _check_any_runs([loop for _, loop in loops])
            states = states_of((stream.application, loop.status) for stream, loop in loops)
            for loop in others:  # a turn may take long, so silence says nothing
                states[loop.name] = f"{FAILING}: {why}" if (why := loop.status.waits_for) else "running"
            write_heartbeat(settings, part, states=states, streams=len(loops))
            _flush(publisher)
            stop.wait(_BEAT_S)
        stopped_by_s = time.monotonic() + _STOP_WITHIN_S
        for _, loop in loops:
            loop.join(max(0.0, stopped_by_s - time.monotonic()))


def states_of(statuses: Iterable[tuple[str, LoopStatus]]) -> dict[str, str]:
    """By application, `running` or why it fails; of several streams, a failing one's state counts."""
    states: dict[str, str] = {}
    for application, status in statuses:
        if not states.get(application, "").startswith(FAILING):
            states[application] = status.state
    return states


def why_failed(exc: Exception) -> str:
    """The reason in one line; of an error that Spark wraps, the innermost, which is the user's code's or ours."""
    found = _PYTHON_ERROR.findall(str(exc)) if not isinstance(exc, DeepLambdaError) else []
    if not found:
        return in_one_line(exc)
    ours, other, message = found[-1]
    return f"{ours or other}: {message}"[:300]


def _loop(stream: Stream, metrics: MetricPublisher, stop: threading.Event) -> Loop:
    def publish(progress: Any) -> None:
        try:
            metrics.publish("rows", progress.numInputRows, "rows")
            metrics.publish("throughput", progress.processedRowsPerSecond, "rows/s")
            metrics.publish("batch_duration", progress.durationMs["triggerExecution"] / 1e3, "s")
        except NotReady as exc:  # losing metrics while the broker is away must not end the stream
            _LOG.warning("metrics not published: %s", exc)

    def work(status: LoopStatus, stop: threading.Event) -> None:
        stream.run(publish, status, stop)

    return Loop(stream.application, work, stop, said=why_failed)


def _check_spark(spark: SparkSession) -> None:
    try:
        stopped = spark.sparkContext._jsc.sc().isStopped()
    except (Py4JNetworkError, OSError) as exc:
        raise NotReady("Spark's JVM is gone", "see the log before this line; the process starts again") from exc
    if stopped:
        raise NotReady("Spark has stopped", "see the log before this line; the process starts again")


def _check_any_runs(loops: list[Loop]) -> None:
    at_s = time.monotonic()
    if loops and all(loop.status.budget.failing_for_s(at_s) > GIVE_UP_AFTER_S for loop in loops):
        raise NotReady(
            f"every stream has failed for {GIVE_UP_AFTER_S:.0f} s, the last one: {loops[-1].status.waits_for}",
            "fix the cause; the streams resume from their checkpoints",
        )


def _flush(publisher: Publisher) -> None:
    try:
        publisher.flush()
    except NotReady as exc:  # losing metrics while the broker is away must not end the streams
        _LOG.warning("metrics not published: %s", exc)
