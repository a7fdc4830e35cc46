"""The batch layer's stages on generated rows, each by its command in a process of its own, with time and memory.

A stack of its own begins empty and is removed with all that it held, so that the next size has the disk for itself.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.own_stack import COMMAND, STORES, fresh_stack
from benchmarks.scale.generated import APPLICATIONS, put_objects

STAGES = ("ingest", "prepare", "train", "recompute")
_SAMPLED_EVERY_S = 0.2
_TRAINER_MEMORY_MB = 64
"""Less than the smaller size takes, so that the trainer reads both from S3, in windows."""
_MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command. core_s: processor time of all its processes, which what else runs does not change. peak_bytes: by
    role, the most that one process of it held."""

    seconds: float
    core_s: float
    peak_bytes: Mapping[str, int]

    def __str__(self) -> str:
        held = ", ".join(f"{role} {peak / _MEBIBYTE:,.0f} MiB" for role, peak in sorted(self.peak_bytes.items()))
        return f"{self.seconds:.1f} s, {self.core_s:.1f} core-s; {held}"


def stages_of(application: str, rows: int) -> dict[str, Stage]:
    """Every stage on `rows` rows, and all of them recomputed as events. Says on stderr how far it is."""
    folder, measured = str(APPLICATIONS / application), {}
    with fresh_stack(*STORES):
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
    begun = time.monotonic()
    bounded = os.environ | {"DEEPLAMBDA_TRAINER_MEMORY_MB": str(_TRAINER_MEMORY_MB)}
    running = subprocess.Popen([*map(str, command)], stdout=sys.stderr, env=bounded)
    watch, ended = _Watch(psutil.Process(running.pid)), threading.Event()
    watching = threading.Thread(target=watch.until, args=(ended,))
    watching.start()
    status = running.wait()
    seconds = time.monotonic() - begun
    ended.set()
    watching.join()
    if status:
        raise subprocess.CalledProcessError(status, running.args)
    return Stage(seconds=seconds, core_s=sum(watch.core_s.values()), peak_bytes=watch.peak_bytes)


class _Watch:
    """Looks at a process and all below it, every now and then. core_s: by process."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self.core_s: dict[int, float] = {}
        self.peak_bytes: dict[str, int] = {}

    def until(self, ended: threading.Event) -> None:
        while not ended.wait(_SAMPLED_EVERY_S):
            with suppress(psutil.NoSuchProcess):
                for process in (self._root, *self._root.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess, OSError):  # it ended meanwhile
                        self._look(process)

    def _look(self, process: psutil.Process) -> None:
        role = _role(process, self._root)
        self.peak_bytes[role] = max(self.peak_bytes.get(role, 0), _held_bytes(process.pid))
        times = process.cpu_times()
        self.core_s[process.pid] = times.user + times.system


def _held_bytes(pid: int) -> int:
    """Memory that no file stands behind, shared pages in proportion. Not the resident set: forked workers share most of
    theirs with the daemon that they come of, and libraries are any other process's as well."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kibibytes = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return 1024 * (kibibytes.get("Pss_Anon", 0) + kibibytes.get("Pss_Shmem", 0))  # a zombie has neither


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
