"""Bring the stack up: every part starts as soon as what it needs answers."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from enum import Enum
from typing import NamedTuple

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_fixed

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, DeepLambdaError, NotReady
from deeplambda.jvm.files import only_one
from deeplambda.jvm.jars import fetch_components
from deeplambda.service import heartbeat
from deeplambda.stack.local import fingerprint
from deeplambda.stack.local.logs import last_lines
from deeplambda.stack.local.parts import PARTS, Part
from deeplambda.stack.local.ports import holder_of, is_free
from deeplambda.stack.local.processes import end, processes_of
from deeplambda.stack.local.supervisor import Supervisor
from deeplambda.stack.local.teardown import take_down

_PROBE_EVERY_S = 0.4
_ENOUGH_SPAWNS = 3


class Step(Enum):
    """How far a part has come."""

    WAITING = "waits for what it needs"
    PREPARING = "prepares"
    STARTING = "starts"
    READY = "ready"
    FAILED = "failed"


class StepReport(NamedTuple):
    """What happened to a part, and how long after its start began."""

    part: Part
    step: Step
    seconds: float
    note: str = ""


class PartFailed(DeepLambdaError):
    """A part that did not come up; the message ends with the last lines of its log."""


def bring_up(settings: Settings, parts: list[Part], report: Callable[[StepReport], None]) -> None:
    """Start those of `parts` that are not up, each after its needs, and wait until all answer.

    A part that runs, but was started with other settings or code than it would be now, is started anew; no other is.
    `parts` must be closed under needs and in their order. What has come up stays up when another part fails.
    Raises: ConfigurationError for a taken port, PartFailed, an ExceptionGroup of them when several fail.
    """
    local = [part for part in parts if part.is_local(settings)]
    fetch_components(settings, {component for part in local for component in part.components})
    with only_one(settings.data_dir / "run" / "up.lock"):
        supervisor = Supervisor(settings)
        if not supervisor.is_up():
            end(processes_of(settings, [part.name for part in PARTS]))  # of a supervisord that was killed
        outdated = _outdated(settings, supervisor, local)
        running = supervisor.running() - {name for name, part_moves in outdated.items() if part_moves.moves}
        check_ports(settings, [part for part in local if part.name not in running])
        take_down(settings, [part for part in local if part.name in outdated], report=lambda _: None)
        supervisor.start(local)
        notes = {name: f"restarted: {found.why}" for name, found in outdated.items()}
        _bring_up_each(settings, supervisor, parts, report, notes)


class _Outdated(NamedTuple):
    """A part that runs with something old. moves: whether it is to listen elsewhere. why: for a person."""

    moves: bool
    why: str


def _outdated(settings: Settings, supervisor: Supervisor, parts: list[Part]) -> dict[str, _Outdated]:
    """Those of `parts` that run, but not with what they would be started with now."""
    found, running = {}, supervisor.running()
    for part in parts:
        if part.name in running:
            before, now = fingerprint.kept(settings, part.name), fingerprint.fingerprint(settings, part)
            if changed := fingerprint.changes(before, now):
                moves = before is not None and part.listens in changed
                found[part.name] = _Outdated(moves, fingerprint.why_restarted(changed, before, now))
    return found


def _bring_up_each(
    settings: Settings,
    supervisor: Supervisor,
    parts: list[Part],
    report: Callable[[StepReport], None],
    notes: Mapping[str, str],
) -> None:
    given_up = threading.Event()
    futures: dict[str, Future[None]] = {}
    with ThreadPoolExecutor(max_workers=len(parts)) as pool:
        try:
            for part in parts:
                needs = [futures[need] for need in part.needs]
                starting = _Starting(settings, supervisor, part, report, given_up, notes.get(part.name, ""))
                futures[part.name] = pool.submit(starting.run, needs)
            wait(futures.values())
        except BaseException:  # above all Ctrl-C, which must not wait for the parts
            given_up.set()
            raise
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


class _Starting(NamedTuple):
    """The start of one part. note: what a person should know of it besides."""

    settings: Settings
    supervisor: Supervisor
    part: Part
    report: Callable[[StepReport], None]
    given_up: threading.Event
    note: str

    def run(self, needs: list[Future[None]]) -> None:
        """Wait for the needs, start the part unless it runs, wait until it answers, provision it."""
        part, settings = self.part, self.settings
        self.report(StepReport(part, Step.WAITING, 0))
        if any(need.exception() is not None for need in needs):  # waits for each
            self.report(StepReport(part, Step.FAILED, 0, f"needs {', '.join(part.needs)}"))
            raise PartFailed(f"{part.name} was not started, because what it needs did not come up")
        started = time.monotonic()
        try:
            if part.is_local(settings) and not self._is_running():
                self.report(StepReport(part, Step.PREPARING, 0))
                part.prepare(settings)
                heartbeat.remove_heartbeat(settings, part.name)
                fingerprint.keep(settings, part.name, fingerprint.fingerprint(settings, part))
                self.supervisor.start_part(part.name)
            self.report(StepReport(part, Step.STARTING, time.monotonic() - started))
            note = self._wait_until_well()
            part.provision(settings)
        except Exception as exc:
            message = getattr(exc, "message", str(exc)).partition("\n")[0]
            self.report(StepReport(part, Step.FAILED, time.monotonic() - started, message))
            raise
        self.report(
            StepReport(part, Step.READY, time.monotonic() - started, "; ".join(filter(None, (self.note, note))))
        )

    def _wait_until_well(self) -> str:
        part, log_dir = self.part, self.supervisor.log_dir
        spawns_before = self.supervisor.spawns(part.name)
        deadline = time.monotonic() + part.start_timeout_s

        def is_hopeless(_: RetryCallState) -> bool:
            if self.given_up.is_set() or time.monotonic() > deadline:
                return True
            return part.is_local(self.settings) and self.supervisor.spawns(part.name) - spawns_before >= _ENOUGH_SPAWNS

        attempts = Retrying(
            retry=retry_if_exception_type(NotReady), wait=wait_fixed(_PROBE_EVERY_S), stop=is_hopeless, reraise=True
        )
        try:
            return attempts(part.probe, self.settings)
        except NotReady as exc:
            raise PartFailed(
                f"{part.name} did not come up: {exc.message}\n"
                f"the end of its log:\n{last_lines(log_dir / f'{part.name}.log', 15)}",
                f"see 'deeplambda logs {part.name}' and 'deeplambda doctor', then run 'deeplambda up' again",
            ) from exc

    def _is_running(self) -> bool:
        return self.part.name in self.supervisor.running()
