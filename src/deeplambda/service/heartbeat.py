"""Heartbeats of parts that listen on no port: each writes `<data_dir>/run/<part>.json` every few seconds."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from deeplambda.config import Settings
from deeplambda.errors import NotReady

Beating = Literal["archive", "mqtt-bridge", "stream", "views"]
"""The parts that have a heartbeat in place of a port."""
BEATING: tuple[Beating, ...] = get_args(Beating)
STALE_AFTER = timedelta(seconds=20)


class Beat(NamedTuple):
    """The last sign of life: when, and what the part said about itself."""

    at: datetime
    pid: int
    details: dict[str, Any]

    @property
    def age(self) -> timedelta:
        return datetime.now(UTC) - self.at


def beat(settings: Settings, part: Beating, **details: Any) -> None:
    """Say that `part` is alive and at work. `details` are JSON values that `deeplambda status --json` shows."""
    place = _place(settings, part)
    place.parent.mkdir(parents=True, exist_ok=True)
    written = place.with_suffix(f".{os.getpid()}.tmp")
    written.write_text(json.dumps({"at": datetime.now(UTC).isoformat(), "pid": os.getpid(), "details": details}))
    written.replace(place)


def last_beat(settings: Settings, part: str) -> Beat | None:
    """The last beat of `part`, None when there has been none."""
    try:
        found = json.loads(_place(settings, part).read_text())
    except FileNotFoundError:
        return None
    return Beat(datetime.fromisoformat(found["at"]), found["pid"], found["details"])


def heartbeat_of(settings: Settings, part: str, since: datetime | None = None) -> str:
    """What the last beat of `part` said, when it is recent and later than `since`. Raises: NotReady."""
    last = last_beat(settings, part)
    if last is None or (since is not None and last.at < since):
        raise NotReady("no sign of life yet")
    if last.age > STALE_AFTER:
        raise NotReady(f"last sign of life {last.age} ago")
    return ", ".join(f"{value} {name}" for name, value in last.details.items())


def forget(settings: Settings, part: str) -> None:
    """Remove the last beat, so that the next one is of a new life."""
    _place(settings, part).unlink(missing_ok=True)


def _place(settings: Settings, part: str) -> Path:
    return settings.data_dir / "run" / f"{part}.json"
