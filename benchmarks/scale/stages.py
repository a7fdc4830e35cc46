"""The batch layer's stages on generated rows, each by its command in a process of its own, with time and memory.

A stack of its own begins empty and is removed with all that it held, so that the next size has the disk for itself.
"""

import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from benchmarks.own_stack import COMMAND, fresh_stack
from benchmarks.scale.generated import APPLICATIONS, put_objects

STAGES = ("ingest", "prepare", "train", "recompute")
_SAMPLED_EVERY_S = 0.5
_MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command. peak_bytes: by role, the most that one process of it held: its proportional set size."""

    seconds: float
    peak_bytes: Mapping[str, int]

    def __str__(self) -> str:
        held = ", ".join(f"{role} {peak / _MEBIBYTE:,.0f} MiB" for role, peak in sorted(self.peak_bytes.items()))
        return f"{self.seconds:.1f} s; {held}"


def stages_of(application: str, rows: int) -> dict[str, Stage]:
    """Every stage on `rows` rows, and all of them recomputed as events. Says on stderr how far it is."""
    folder, measured = str(APPLICATIONS / application), {}
    with fresh_stack("kafka", "s3", "mysql", "metastore"):
        _say(f"{application}: {rows:,} rows")
        _say(f"  put on S3: {_timed(lambda: put_objects(application, rows)):.1f} s")
        for stage in STAGES:
            if stage == "recompute":
                subprocess.run([COMMAND, "model", "promote", folder], check=True, stdout=sys.stderr)
                subprocess.run([sys.executable, "-m", "benchmarks.scale.generated", application], check=True)
            measured[stage] = measured_command([COMMAND, "batch", stage, folder])
            _say(f"  {stage}: {measured[stage]}; {rows / measured[stage].seconds:,.0f} rows/s")
    return measured


def measured_command(command: Sequence[object]) -> Stage:
    """Run a command to its end, and watch the processes below it. Raises: CalledProcessError."""
    peaks: defaultdict[str, int] = defaultdict(int)
    begun = time.monotonic()
    running = subprocess.Popen([*map(str, command)], stdout=sys.stderr)
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(psutil.Process(running.pid), peaks, ended))
    watching.start()
    status = running.wait()
    seconds = time.monotonic() - begun
    ended.set()
    watching.join()
    if status:
        raise subprocess.CalledProcessError(status, running.args)
    return Stage(seconds=seconds, peak_bytes=dict(peaks))


def _watch(root: psutil.Process, peaks: defaultdict[str, int], ended: threading.Event) -> None:
    while not ended.wait(_SAMPLED_EVERY_S):
        with suppress(psutil.NoSuchProcess):
            for process in (root, *root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                    role = _role(process, root)
                    # Not the resident set: forked workers share most of it with the daemon that they come of.
                    peaks[role] = max(peaks[role], process.memory_full_info().pss)


def _role(process: psutil.Process, root: psutil.Process) -> str:
    """The command's own process is the driver, and in training the trainer."""
    if process == root:
        return "driver"
    if process.name() == "java":
        return "driver's JVM"
    return "Python worker"


def _timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
