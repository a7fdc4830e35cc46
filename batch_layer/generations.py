"""The part that trains anew by itself: `python -m batch_layer.generations`.

It looks every few seconds whether a generation of an application is due (`batch_layer/triggers.py`) or was left by a
process that was killed, and runs each as a process of its own, one after the other: Spark is up only while one runs.
With DEEPLAMBDA_GENERATIONS off, which is the default, it only says so.
"""

import logging
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from deeplambda.config import Settings, load_settings
from deeplambda.service.heartbeat import write_heartbeat
from deeplambda.service.logs import log_to_stderr
from deeplambda.service.loops import Loop, LoopStatus

_LOOK_S = 5.0
_BEAT_S = 2.0
_WATCH_S = 1.0
_STOP_WITHIN_S = 10.0

_log = logging.getLogger("batch_layer.generations")


@dataclass
class _Attempts:
    """Of one application. failures: processes in a row that did not finish. not_before_s: of the monotonic clock."""

    failures: int = 0
    not_before_s: float = 0.0


def watch(settings: Settings, status: LoopStatus, stop: threading.Event) -> None:
    """Start what is due until `stop` is set: the `work` of a `Loop`, which calls it again after NotReady."""
    from batch_layer.news import News
    from batch_layer.triggers import Due, Waits, decide, pause_s
    from deeplambda.adapters.mysql import engine, mysql_errors
    from deeplambda.clock import now
    from deeplambda.state.generation_store import is_worked_on

    platform = engine(settings, "platform")
    attempts = {application: _Attempts() for application in settings.applications}
    with News(settings, settings.applications) as news:
        while not stop.is_set():
            said: dict[str, Any] = {}
            for application, tried in attempts.items():
                with mysql_errors(), platform.connect() as connection:
                    known = news.known(connection, application)
                    if is_worked_on(connection, application):
                        said[f"({application})"] = "a generation is under way"
                        continue
                left = known.last if known.last is not None and known.last.is_running else None
                due = Due(cause=left.cause, why=left.why) if left else decide(settings, known, now())
                if isinstance(due, Waits):
                    said[f"({application})"] = due.why
                elif time.monotonic() < tried.not_before_s:
                    said[f"({application})"] = f"failed {tried.failures} times in a row, and is tried again"
                else:
                    status.working(**{f"({application})": f"{due.cause}: {due.why}"})
                    if _run(application, due.cause, due.why, status, stop) == 0:
                        tried.failures = 0
                    else:
                        tried.failures += 1
                        tried.not_before_s = time.monotonic() + pause_s(tried.failures)
            status.working(**said)
            stop.wait(_LOOK_S)


def _run(application: str, cause: str, why: str, status: LoopStatus, stop: threading.Event) -> int:
    """A generation as a process of its own; its exit code."""
    _log.info("generation of %s: %s (%s)", application, why, cause)
    command = ["batch", "generations", application, "--start", "--cause", cause, "--why", why]
    process = subprocess.Popen([sys.executable, "-m", "deeplambda", *command])
    while process.poll() is None:
        status.alive()
        if stop.wait(_WATCH_S):
            process.terminate()  # it is taken up at the next start
            process.wait()
    _log.info("generation of %s ended with exit code %s", application, process.returncode)
    return process.returncode


def main() -> None:
    """Run until SIGTERM."""
    log_to_stderr()
    settings, stop = load_settings(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    loop = Loop("generations", lambda status, stop: watch(settings, status, stop), stop)
    if settings.generations:
        loop.start()
    while not stop.wait(_BEAT_S):
        if not settings.generations:
            write_heartbeat(settings, "generations", off="turned")
        elif not loop.status.stuck:
            write_heartbeat(settings, "generations", states={loop.name: loop.status.state}, **loop.status.details)
    if settings.generations:
        loop.join(_STOP_WITHIN_S)


if __name__ == "__main__":
    main()
