"""Bring the stack up: every part starts as soon as what it needs answers."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from typing import NamedTuple

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_fixed

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, DeepLambdaError, NotReady
from deeplambda.stack import heartbeat
from deeplambda.stack.jars import fetch_components
from deeplambda.stack.logs import last_lines
from deeplambda.stack.parts import Part
from deeplambda.stack.ports import holder_of, is_free
from deeplambda.stack.supervisor import Supervisor

_PROBE_EVERY_S = 0.25
_ENOUGH_SPAWNS = 3


class Step(Enum):
    """How far a part has come."""

    WAITING = "waits for what it needs"
    PREPARING = "prepares"
    STARTING = "starts"
    READY = "ready"
    FAILED = "failed"


class Progress(NamedTuple):
    """What happened to a part, and how long after its start began."""

    part: Part
    step: Step
    seconds: float
    note: str = ""


class PartFailed(DeepLambdaError):
    """A part that did not come up; the message ends with the last lines of its log."""


def bring_up(settings: Settings, parts: list[Part], report: Callable[[Progress], None]) -> None:
    """Start those of `parts` that are not up, each after its needs, and wait until all answer.

    `parts` must be closed under needs and in their order. What has come up stays up when another part fails.
    Raises: ConfigurationError for a taken port, PartFailed, an ExceptionGroup of them when several fail.
    """
    local = [part for part in parts if part.is_local(settings)]
    fetch_components(settings, {component for part in local for component in part.components})
    supervisor = Supervisor(settings)
    running = {name for name, process in supervisor.processes().items() if process.is_running}
    check_ports(settings, [part for part in local if part.name not in running])
    supervisor.start(local)
    with ThreadPoolExecutor(max_workers=len(parts)) as pool:
        futures: dict[str, Future[None]] = {}
        for part in parts:
            needs = [futures[need] for need in part.needs]
            futures[part.name] = pool.submit(_bring_up_part, settings, supervisor, part, needs, report)
    failures = [error for future in futures.values() if isinstance(error := future.exception(), Exception)]
    if len(failures) > 1:
        raise ExceptionGroup("parts of the stack did not come up", failures)
    if failures:
        raise failures[0]


def check_ports(settings: Settings, parts: Iterable[Part]) -> None:
    """Raises: ConfigurationError naming every port of `parts` that is taken, and by whom."""
    taken = [
        f"port {port} of {part.name} is taken by {holder_of(port)}"
        for part in parts
        for port in part.ports(settings)
        if not is_free(port)
    ]
    if taken:
        raise ConfigurationError(
            "; ".join(taken),
            "run 'deeplambda up --free-ports' to use other ports, or stop what holds them",
        )


def _bring_up_part(
    settings: Settings,
    supervisor: Supervisor,
    part: Part,
    needs: list[Future[None]],
    report: Callable[[Progress], None],
) -> None:
    report(Progress(part, Step.WAITING, 0))
    if any(need.exception() is not None for need in needs):  # waits for each
        report(Progress(part, Step.FAILED, 0, f"needs {', '.join(part.needs)}"))
        return
    started = time.monotonic()
    try:
        if part.is_local(settings) and not _runs(supervisor, part):
            report(Progress(part, Step.PREPARING, 0))
            part.prepare(settings)
            heartbeat.forget(settings, part.name)
            supervisor.start_part(part.name)
        report(Progress(part, Step.STARTING, time.monotonic() - started))
        fact = wait_until_well(settings, supervisor, part)
        part.provision(settings)
    except Exception as exc:
        report(Progress(part, Step.FAILED, time.monotonic() - started, getattr(exc, "message", str(exc))))
        raise
    report(Progress(part, Step.READY, time.monotonic() - started, fact))


def wait_until_well(settings: Settings, supervisor: Supervisor, part: Part) -> str:
    """Ask `part` until it answers; returns its answer. Raises: PartFailed when it keeps dying or takes too long."""
    spawns_before = supervisor.spawns(part.name)
    deadline = time.monotonic() + part.start_timeout_s

    def is_hopeless(state: RetryCallState) -> bool:
        if time.monotonic() > deadline or not part.is_local(settings):
            return time.monotonic() > deadline
        fatal = supervisor.processes()[part.name].state == "FATAL"
        return fatal or supervisor.spawns(part.name) - spawns_before >= _ENOUGH_SPAWNS

    attempts = Retrying(
        retry=retry_if_exception_type(NotReady), wait=wait_fixed(_PROBE_EVERY_S), stop=is_hopeless, reraise=True
    )
    try:
        return attempts(part.probe, settings)
    except NotReady as exc:
        log = last_lines(supervisor.log_dir / f"{part.name}.log", 15)
        raise PartFailed(
            f"{part.name} did not come up: {exc.message}\nthe end of its log:\n{log}",
            f"see 'deeplambda logs {part.name}' and 'deeplambda doctor', then run 'deeplambda up' again",
        ) from exc


def _runs(supervisor: Supervisor, part: Part) -> bool:
    process = supervisor.processes().get(part.name)
    return process is not None and process.is_running
