"""Keeping Spark streams running: each on its own, so that one application's trouble stops no other's stream.

A stream that fails resumes from its checkpoint in the same session, which takes less than a second; a process that
starts Spark anew takes twenty. After each failure in a row its pause doubles, up to a minute. The process ends, and the
supervisor or container engine starts it again, only when Spark itself is gone or every stream has failed for long.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from py4j.protocol import Py4JNetworkError
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from deeplambda.adapters.kafka import Publisher
from deeplambda.config import Settings
from deeplambda.errors import DeepLambdaError, NotReady
from deeplambda.service.heartbeat import BEHIND, FAILING, HeartbeatPart, states_of, write_heartbeat
from deeplambda.service.lag import Lag, TopicEnds, publish_lag
from deeplambda.service.loops import Loop, LoopStatus, in_one_line, stop_on_signals
from deeplambda.service.metrics import MetricPublisher
from deeplambda.service.stream_report import StreamReport

_WATCH_S = 1.0
_BEAT_S = 5.0
_REPORT_S = 10.0
_STOP_WITHIN_S = 10.0
_SLOW_AFTER_S = 120.0
HUNG_AFTER_S = 600.0
"""When a stream has ended no batch, looked for none and not failed either for this long, the part has no heartbeat any
more. One that fails begins again by itself and costs the others nothing; one that hangs only a fresh process mends."""
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

    topic: what it reads. start: begins the query or resumes it from its checkpoint; whatever must be loaded or created
    first is done in it, for it runs on the stream's own thread. hops_ms: of the work on the last batch, by hop.
    progress_s: by a monotonic clock, when it last began, ended a batch or found nothing to do.
    """

    application: str
    topic: str
    start: Callable[[], StreamingQuery]
    hops_ms: Callable[[], Mapping[str, float]] = dict
    report: StreamReport = field(default_factory=StreamReport)
    lag: Lag = field(default_factory=Lag)
    progress_s: float = field(default_factory=time.monotonic)

    def run(self, status: LoopStatus, stop: threading.Event) -> None:
        """Start the query and watch it until `stop` is set: the work of the stream's `Loop`. Raises: what ended it."""
        self.progress_s = time.monotonic()
        query = self.start()
        seen: str | None = None
        try:
            while not stop.is_set():
                if (failure := query.exception()) is not None:
                    raise failure
                if not query.isActive:
                    raise NotReady("the query ended without an error")
                progress = query.lastProgress  # an idle stream has one every ten seconds
                if progress is not None and progress.timestamp != seen:
                    self.progress_s, seen = time.monotonic(), progress.timestamp
                    self.report.took(progress, self.hops_ms())
                    status.working()
                elif self.silent_s > _SLOW_AFTER_S:
                    # Only said, not stopped: a large batch of a slow model would else begin again and again.
                    status.waiting(f"no batch has ended for {self.silent_s // 60 * 60:.0f} s and more")
                else:
                    status.alive()
                stop.wait(_WATCH_S)
        finally:
            query.stop()

    @property
    def silent_s(self) -> float:
        """How long it has not begun, nor ended a batch, nor looked for one."""
        return time.monotonic() - self.progress_s

    @property
    def hangs(self) -> bool:
        """Whether it will go on by itself no more."""
        return self.silent_s > HUNG_AFTER_S


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
    stop = stop_on_signals()
    loops = [(stream, Loop(stream.application, stream.run, stop, said=why_failed)) for stream in streams]
    others = [Loop(name, work, stop, said=why_failed) for name, work in (beside or {}).items()]
    reporting = _reporting(settings, layer, part, [stream for stream, _ in loops])
    for loop in (*(loop for _, loop in loops), *others, Loop("reporting", reporting, stop, longest_pause_s=_REPORT_S)):
        loop.start()
    while not stop.is_set():
        _check_spark(spark)
        _check_any_runs([loop for _, loop in loops])
        beat(settings, part, loops, others)
        stop.wait(_BEAT_S)
    stopped_by_s = time.monotonic() + _STOP_WITHIN_S
    for _, loop in loops:
        loop.join(max(0.0, stopped_by_s - time.monotonic()))


def beat(
    settings: Settings, part: HeartbeatPart, loops: Collection[tuple[Stream, Loop]], others: Collection[Loop]
) -> None:
    """Write the part's heartbeat, unless a stream hangs."""
    states = states_of((stream.application, state_of(loop.status, stream.lag)) for stream, loop in loops)
    for loop in others:  # a turn may take long, so silence says nothing
        states[loop.name] = f"{FAILING}: {why}" if (why := loop.status.waits_for) else "running"
    if not any(stream.hangs for stream, _ in loops):
        write_heartbeat(settings, part, states=states, streams=len(loops))


def state_of(status: LoopStatus, lag: Lag) -> str:
    """A stream's state in the heartbeat: of one that works, whether it keeps up."""
    behind = lag.behind if status.state == "running" else None
    return f"{BEHIND}: {behind}" if behind else status.state


def why_failed(exc: Exception) -> str:
    """The reason in one line; of an error that Spark wraps, the innermost, which is the user's code's or ours."""
    found = _PYTHON_ERROR.findall(str(exc)) if not isinstance(exc, DeepLambdaError) else []
    if not found:
        return in_one_line(exc)
    ours, other, message = found[-1]
    return f"{ours or other}: {message}"[:300]


def _reporting(
    settings: Settings, layer: str, part: str, streams: Collection[Stream]
) -> Callable[[LoopStatus, threading.Event], None]:
    """The work of a loop that looks at the streams' lag, and publishes their metrics."""

    def work(status: LoopStatus, stop: threading.Event) -> None:
        since_s = time.monotonic()
        asking = TopicEnds(settings, [stream.topic for stream in streams])
        with closing(asking) as ends, Publisher(settings) as publisher:
            while not stop.is_set():
                found, at_s = ends.ask(), time.monotonic()
                for stream in streams:
                    stream.lag.looked(at_s, ends=found[stream.topic], done=stream.report.done)
                if at_s - since_s >= _REPORT_S:
                    for application in sorted({stream.application for stream in streams}):
                        metrics = MetricPublisher(publisher, layer=layer, part=part, application=application)
                        own = [stream for stream in streams if stream.application == application]
                        publish_lag(metrics, [stream.lag for stream in own])
                        for stream in own:
                            stream.report.publish(metrics, at_s - since_s)
                    publisher.flush()
                    since_s = at_s
                status.working()
                stop.wait(_BEAT_S)

    return work


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
