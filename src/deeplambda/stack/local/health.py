"""How the stack is: each part's process and whether it answers."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.stack.local.parts import PARTS, Part
from deeplambda.stack.local.supervisor import Process, Supervisor


@dataclass(frozen=True, kw_only=True)
class Health:
    """One part. health: well, unwell, stopped, or elsewhere (well on another machine).

    states: by application, or by loop, `running` or `failing: ` and why; empty where the part has none or is not well.
    """

    part: str
    health: str
    note: str
    pid: int | None = None
    address: str | None = None
    memory_bytes: int | None = None
    """Resident memory of the part's whole process tree; pages that two processes share count twice."""
    restarts: int = 0
    uptime_s: int | None = None
    states: dict[str, str] = field(default_factory=dict)

    @property
    def is_trouble(self) -> bool:
        return self.health == "unwell"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def stack_health(settings: Settings) -> list[Health]:
    """Every part, asked at the same time in its own protocol."""
    supervisor = Supervisor(settings)
    processes = supervisor.processes()
    with ThreadPoolExecutor(max_workers=len(PARTS)) as pool:
        return list(pool.map(lambda part: _health_of(settings, supervisor, part, processes.get(part.name)), PARTS))


def _health_of(settings: Settings, supervisor: Supervisor, part: Part, process: Process | None) -> Health:
    address = part.address(settings)
    if not part.is_local(settings):
        well, note = _ask(settings, part)
        return Health(part=part.name, health="elsewhere" if well else "unwell", note=note, address=address)
    if process is None or process.state == "STOPPED":
        return Health(part=part.name, health="stopped", note="", address=address)
    restarts = max(0, supervisor.spawns(part.name) - 1)
    if not process.is_running:
        note = f"{process.state.lower()}: {process.problem or 'see its log'}"
        return Health(part=part.name, health="unwell", note=note, address=address, restarts=restarts)
    well, note = _ask(settings, part)
    return Health(
        part=part.name,
        health="well" if well else "unwell",
        note=note,
        pid=process.pid,
        address=address,
        memory_bytes=tree_memory_bytes(process.pid),
        restarts=restarts,
        uptime_s=int(time.time() - process.started_at_s),
        states=_states(settings, part) if well else {},
    )


def _ask(settings: Settings, part: Part) -> tuple[bool, str]:
    try:
        return True, part.probe(settings)
    except NotReady as exc:
        return False, exc.message


def _states(settings: Settings, part: Part) -> dict[str, str]:
    try:
        return part.states(settings)
    except NotReady:  # it was well a moment ago
        return {}


def tree_memory_bytes(pid: int) -> int:
    """Resident memory of a process and all its descendants."""
    total = 0
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in tree:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # ended meanwhile
            continue
    return total
