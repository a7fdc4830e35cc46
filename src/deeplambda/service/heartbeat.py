"""Heartbeats of the parts that listen on no port: each writes `<data_dir>/run/<part>.json` every few seconds.

The stack's probes and the containers' health checks read them, where they would otherwise connect to a port.
"""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from deeplambda.config import Settings
from deeplambda.errors import NotReady

HeartbeatPart = Literal["archive", "mqtt-bridge", "stream", "views"]
"""The parts that have a heartbeat in place of a port."""
HEARTBEAT_PARTS: tuple[HeartbeatPart, ...] = get_args(HeartbeatPart)
STALE_AFTER = timedelta(seconds=20)


class Heartbeat(NamedTuple):
    """A part's last heartbeat: when and by which process it was written, and the details given with it."""

    at: datetime
    pid: int
    details: dict[str, Any]

    @property
    def age(self) -> timedelta:
        return datetime.now(UTC) - self.at


def write_heartbeat(settings: Settings, part: HeartbeatPart, **details: Any) -> None:
    """Record that `part` is at work; its main loop calls this every few seconds.

    details: JSON values that `deeplambda status` shows.
    """
    place = _place(settings, part)
    place.parent.mkdir(parents=True, exist_ok=True)
    written = place.with_suffix(f".{os.getpid()}.tmp")
    written.write_text(json.dumps({"at": datetime.now(UTC).isoformat(), "pid": os.getpid(), "details": details}))
    written.replace(place)


def last_heartbeat(settings: Settings, part: str) -> Heartbeat | None:
    """The last heartbeat of `part`; None when there has been none."""
    try:
        found = json.loads(_place(settings, part).read_text())
    except FileNotFoundError:
        return None
    return Heartbeat(datetime.fromisoformat(found["at"]), found["pid"], found["details"])


def probe_heartbeat(settings: Settings, part: str, since: datetime | None = None) -> str:
    """The details of the last heartbeat of `part` as text: the probe of a part without a port.

    Raises: NotReady when that heartbeat is missing, older than `since` or older than `STALE_AFTER`.
    """
    last = last_heartbeat(settings, part)
    if last is None or (since is not None and last.at < since):
        raise NotReady("no heartbeat yet")
    if last.age > STALE_AFTER:
        raise NotReady(f"last heartbeat {last.age} ago")
    return ", ".join(f"{value} {name}" for name, value in last.details.items())


def remove_heartbeat(settings: Settings, part: str) -> None:
    """Remove the last heartbeat of `part`; called before it starts, so that only the new process's heartbeat counts."""
    _place(settings, part).unlink(missing_ok=True)


def _place(settings: Settings, part: str) -> Path:
    return settings.data_dir / "run" / f"{part}.json"
