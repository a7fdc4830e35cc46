"""When a generation is due: drift, a number of new labels, or the clock. A pure decision over what is known.

| what | starts one |
|---|---|
| a drift was noticed since the last one began | once enough labels have come since it was noticed |
| an alarm of the champion's stands after that one | once enough have come since: twice as many after each in vain |
| new labels | once there are enough of them |
| the clock | once champion and last generation are old enough, with any new label |

Nothing does before the pause after the last one is over, without a champion, or without a new label.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from deeplambda.config import Settings
from deeplambda.state.generation_store import Cause, Generation

MAX_ATTEMPTS = 6
"""Processes that may work on a generation; the pauses between them come to half an hour."""
_FIRST_PAUSE_S, _PAUSE_GROWS = 5.0, 4.0


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the decision is made from. trained_at: when the champion was; None without one. last: the newest generation.
    new_labels: since that one, as Kafka counts them. drift_at: of the first drift noticed since it began; then
    labels_since_drift counts those that came later. alarm_stands: whether the champion's newest window was unlike its
    reference. fruitless: how many of the newest generations in a row have not replaced it."""

    trained_at: datetime | None
    last: Generation | None
    new_labels: int
    drift_at: datetime | None = None
    labels_since_drift: int = 0
    alarm_stands: bool = False
    fruitless: int = 0


@dataclass(frozen=True, kw_only=True)
class Due:
    """A generation is to start."""

    cause: Cause
    why: str


@dataclass(frozen=True, kw_only=True)
class Waits:
    """None is to start yet."""

    why: str


def decide(settings: Settings, known: Known, now: datetime) -> Due | Waits:
    """Whether a generation is due, and why or why not."""
    if known.trained_at is None:
        return Waits(why="no champion yet")
    last, since = known.last, known.trained_at
    if last is not None:
        since = max(since, last.started_at)
        over_at = (last.ended_at or now) + timedelta(seconds=settings.generation_pause_s)
        if now < over_at:
            return Waits(why=f"pauses until {over_at:%H:%M:%S}Z")
    enough = settings.generation_labels
    waits = f"{known.new_labels:,} of {enough:,} new labels" if enough else f"{known.new_labels:,} new labels"
    if known.drift_at is not None:
        drift = f"drift noticed at {known.drift_at:%Y-%m-%d %H:%M:%S}Z"
        if known.labels_since_drift >= settings.generation_drift_labels:
            return Due(cause="drift", why=f"{drift}, {known.labels_since_drift:,} labels since")
        waits = f"{drift} waits for labels: {known.labels_since_drift:,} of {settings.generation_drift_labels:,}"
    elif known.alarm_stands:
        wanted = settings.generation_drift_labels * 2**known.fruitless
        if known.new_labels >= wanted:
            return Due(cause="drift", why=f"an alarm of drift still stands, {known.new_labels:,} new labels")
        waits = f"an alarm of drift that still stands waits for new labels: {known.new_labels:,} of {wanted:,}"
    if enough and known.new_labels >= enough:
        return Due(cause="labels", why=f"{known.new_labels:,} new labels")
    every = timedelta(seconds=settings.generation_every_s)
    if every and known.new_labels and now >= since + every:
        return Due(cause="schedule", why=f"the last training was at {since:%Y-%m-%d %H:%M:%S}Z")
    return Waits(why=waits)


def pause_s(failures: int) -> float:
    """After how many seconds a generation that has failed `failures` times in a row is taken up again."""
    return _FIRST_PAUSE_S * _PAUSE_GROWS ** (min(failures, MAX_ATTEMPTS) - 1)
