"""Heartbeats of the parts that listen on no port: each writes `<data_dir>/run/<part>.json` every few seconds.

The stack's probes and the containers' health checks read them, where they would otherwise connect to a port.
"""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from deeplambda.config import Settings
from deeplambda.errors import NotReady

HeartbeatPart = Literal["archive", "generations", "mqtt-bridge", "stream", "views"]
"""The parts that have a heartbeat in place of a port."""
HEARTBEAT_PARTS: tuple[HeartbeatPart, ...] = get_args(HeartbeatPart)
STALE_AFTER = timedelta(seconds=20)

FAILING = "failing"
"""What a state begins with when something is wrong; the reason follows."""
BEHIND = "behind"
"""What a state begins with when all works, but more comes than is worked off."""


class Heartbeat(NamedTuple):
    """A part's last heartbeat: when and by which process it was written, and the details and states given with it."""

    at: datetime
    pid: int
    details: dict[str, Any]
    states: dict[str, str]

    @property
    def age(self) -> timedelta:
        return datetime.now(UTC) - self.at


def write_heartbeat(
    settings: Settings,
    part: HeartbeatPart | Literal["gateway"],
    states: Mapping[str, str] | None = None,
    **details: Any,
) -> None:
    """Record that `part` is at work; its main loop calls this every few seconds.

    states: by application, or by loop in a part whose loops serve all of them: `running`, or `failing: ` or `behind: `
    and why.
    The part is at work even when an application in it fails: `deeplambda status` names that one, and is no less well.
    details: JSON values that `deeplambda status` shows. The gateway has a port, and beats to tell its states.
    """
    place = _place(settings, part)
    place.parent.mkdir(parents=True, exist_ok=True)
    written = place.with_suffix(f".{os.getpid()}.tmp")
    beat = {"at": datetime.now(UTC).isoformat(), "pid": os.getpid(), "details": details, "states": dict(states or {})}
    written.write_text(json.dumps(beat))
    written.replace(place)


def states_of(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By name, its state: of several under one name, such as the streams of an application, the worst."""
    states: dict[str, str] = {}
    for name, state in found:
        states[name] = min(state, states.get(name, state), key=_severity)
    return states


def _severity(state: str) -> int:
    return 0 if state.startswith(FAILING) else 1 if state.startswith(BEHIND) else 2


def last_heartbeat(settings: Settings, part: str) -> Heartbeat | None:
    """The last heartbeat of `part`; None when there has been none."""
    try:
        found = json.loads(_place(settings, part).read_text())
    except FileNotFoundError:
        return None
    return Heartbeat(datetime.fromisoformat(found["at"]), found["pid"], found["details"], found.get("states", {}))


def last_states(settings: Settings, part: str) -> dict[str, str]:
    """The states in the last heartbeat of `part`; none where it is stale."""
    last = last_heartbeat(settings, part)
    return {} if last is None or last.age > STALE_AFTER else last.states


def probe_heartbeat(settings: Settings, part: str) -> str:
    """The last heartbeat of `part` as text, which names what fails in it: the probe of a part without a port.

    Raises: NotReady when that heartbeat is missing or older than `STALE_AFTER`.
    """
    last = last_heartbeat(settings, part)
    if last is None:
        raise NotReady("no heartbeat yet")
    if last.age > STALE_AFTER:
        raise NotReady(f"last heartbeat {last.age} ago")
    failing = [f"{name} fails" for name, state in last.states.items() if state.startswith(FAILING)]
    behind = [f"{name} is behind" for name, state in last.states.items() if state.startswith(BEHIND)]
    return ", ".join([*(f"{value} {name}" for name, value in last.details.items()), *failing, *behind])


def remove_heartbeat(settings: Settings, part: str) -> None:
    """Remove the last heartbeat of `part`; called before it starts, so that only the new process's heartbeat counts."""
    _place(settings, part).unlink(missing_ok=True)


def _place(settings: Settings, part: str) -> Path:
    return settings.data_dir / "run" / f"{part}.json"
