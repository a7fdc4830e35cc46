"""What `deeplambda serve status` prints: the state of an application's batch view and real-time view."""

from datetime import datetime

from sqlalchemy import ColumnElement, func, select, text

from deeplambda.adapters import mysql
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.service.heartbeat import last_heartbeat
from deeplambda.state.horizon_store import read_horizon, shown_horizon
from deeplambda.state.tables import HORIZONS, OUTBOX, REALTIME_PREDICTIONS, RECENT_PREDICTIONS


def serving_status(settings: Settings, application: str) -> dict[str, str]:
    """By the name of a line, its text. Raises: NotReady."""
    live = REALTIME_PREDICTIONS.c
    own: ColumnElement[bool] = live.application == application
    with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
        horizon = read_horizon(connection, application)
        waits = "" if shown_horizon(connection, application) == horizon else "; the gateway does not show it yet"
        view = connection.execute(select(HORIZONS).where(HORIZONS.c.application == application)).one_or_none()
        rows = connection.scalar(select(func.count()).where(own)) or 0
        past = connection.scalar(select(func.count()).where(own, text(horizon.past_mysql()))) or 0
        newest = connection.scalar(select(func.max(live.predicted_at)).where(own))
        recent = connection.scalar(select(func.count()).where(RECENT_PREDICTIONS.c.application == application)) or 0
        waiting, oldest = connection.execute(
            select(func.count(), func.min(OUTBOX.c.written_at)).where(OUTBOX.c.published_at.is_(None))
        ).one()
    beat = last_heartbeat(settings, "views")
    details = ", ".join(f"{value} {name}" for name, value in beat.details.items()) if beat else ""
    return {
        "batch view": f"snapshot {view.snapshot} by {application}/{view.model_version}, {_ago(view.moved_at)}{waits}"
        if view
        else f"none yet: 'deeplambda batch recompute {application}' makes one",
        "horizon": ", ".join(f"partition {p} at {o:,}" for p, o in sorted(horizon.offsets.items()))
        or "nothing absorbed",
        "real-time rows": f"{past:,} past the horizon, {rows - past:,} before it that will be trimmed",
        "newest prediction": _ago(newest),
        "rows in recent_predictions": f"{recent:,}",
        "outbox": f"{waiting:,} events wait, the oldest since {_ago(oldest)}" if waiting else "nothing waits",
        "views": f"{details}; {_ago(beat.at)}" if beat else "no heartbeat: 'deeplambda up'",
    }


def _ago(moment: datetime | None) -> str:
    if moment is None:
        return "never"
    seconds = (now() - moment).total_seconds()
    return f"{seconds:,.0f} s ago" if seconds < 600 else f"{moment:%Y-%m-%d %H:%M:%S} UTC"
