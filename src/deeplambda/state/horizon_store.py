"""Where the horizon is kept: one row for each application in MySQL, moved in one transaction with its event.

Beside it stands which horizons the union view has shown, and since when, by MySQL's clock alone: what a horizon has
absorbed may go once no query can need it that was planned on the one before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select

from deeplambda.adapters import mysql
from deeplambda.errors import Conflict
from deeplambda.records import topics
from deeplambda.records.horizon import Horizon
from deeplambda.records.lifecycle import BatchViewPublished
from deeplambda.state import outbox
from deeplambda.state.tables import HORIZONS, SHOWN_HORIZONS


@dataclass(frozen=True, kw_only=True)
class BatchView:
    """The visible batch view. events_snapshot, version: of the archive and the model it was made of; None before it."""

    horizon: Horizon = field(default_factory=Horizon)
    events_snapshot: int | None = None
    version: int | None = None


def read_batch_view(connection: Connection, application: str, *, lock: bool = False) -> BatchView:
    """What is visible now. lock: whether it stays so until the caller's transaction ends."""
    query = select(HORIZONS).where(HORIZONS.c.application == application)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        return BatchView()
    return BatchView(
        horizon=_horizon(row.snapshot, row.offsets),
        events_snapshot=row.events_snapshot,
        version=row.model_version,
    )


def read_horizon(connection: Connection, application: str) -> Horizon:
    """The horizon now; before the first batch view, one that has absorbed nothing."""
    return read_batch_view(connection, application).horizon


def move_horizon(connection: Connection, published: BatchViewPublished, *, replaces: BatchView) -> None:
    """Make a new batch view the visible one, in the caller's transaction.

    replaces: what was visible when the new view was begun. Raises: Conflict when it no longer is, or when the horizon
    would go back.
    """
    visible = read_batch_view(connection, published.application, lock=True)
    if visible != replaces:
        raise Conflict(f"another batch view of {published.application} was published meanwhile", "run it again")
    check_forward(published.application, published.offsets, visible.horizon)
    connection.execute(delete(HORIZONS).where(HORIZONS.c.application == published.application))
    connection.execute(
        insert(HORIZONS).values(
            application=published.application,
            snapshot=published.snapshot,
            events_snapshot=published.events_snapshot,
            model_version=published.version,
            offsets=published.offsets,
            moved_at=published.at,
        )
    )
    outbox.record(connection, topics.LIFECYCLE, published.application, published)


def check_forward(application: str, offsets: Mapping[int, int], visible: Horizon) -> None:
    """Raises: Conflict when a horizon of these offsets would go back: trimmed real-time rows do not come again."""
    behind = [p for p, offset in visible.offsets.items() if offsets.get(p, 0) < offset]
    if behind:
        raise Conflict(
            f"the horizon of {application} would go back in partition {behind[0]}, to "
            f"{offsets.get(behind[0], 0)} from {visible.offsets[behind[0]]}",
            f"see why lake.{application}.events has lost rows: its snapshots tell who wrote it",
        )


def record_shown(connection: Connection, application: str, horizon: Horizon) -> None:
    """Record that the union view shows a horizon from now on. The gateway calls it once it has replaced the view.

    However the database's clock is set, it is later than those before.
    """
    shown = SHOWN_HORIZONS.c
    newest = connection.scalar(select(func.max(shown.shown_at)).where(shown.application == application))
    at: Any = func.utc_timestamp(6)
    connection.execute(
        insert(SHOWN_HORIZONS).values(
            application=application,
            shown_at=at if newest is None else func.greatest(at, newest + timedelta(microseconds=1)),
            snapshot=horizon.snapshot,
            offsets=dict(horizon.offsets),
        )
    )


def shown_horizon(connection: Connection, application: str, since: timedelta = timedelta()) -> Horizon:
    """The newest horizon that the union view took up `since` ago or earlier; one that has absorbed nothing if none."""
    shown = SHOWN_HORIZONS.c
    newest = select(shown.snapshot, shown.offsets).where(_shown(application, since)).order_by(shown.shown_at.desc())
    row = connection.execute(newest.limit(1)).one_or_none()
    return _horizon(row.snapshot, row.offsets) if row else Horizon()


def shown_snapshots(connection: Connection, application: str) -> set[int]:
    """The batch views that a query may still read."""
    shown = SHOWN_HORIZONS.c
    return set(connection.scalars(select(shown.snapshot).where(shown.application == application)))


def forget_shown(connection: Connection, application: str, since: timedelta) -> None:
    """Delete the records of earlier horizons than `shown_horizon` gives."""
    shown = SHOWN_HORIZONS.c
    newest_at = connection.scalar(select(func.max(shown.shown_at)).where(_shown(application, since)))
    if newest_at is not None:
        connection.execute(delete(SHOWN_HORIZONS).where(shown.application == application, shown.shown_at < newest_at))


def _shown(application: str, since: timedelta) -> ColumnElement[bool]:
    return and_(SHOWN_HORIZONS.c.application == application, SHOWN_HORIZONS.c.shown_at <= mysql.ago(since))


def _horizon(snapshot: int, offsets: Mapping[str, int]) -> Horizon:
    return Horizon(snapshot=snapshot, offsets={int(partition): offset for partition, offset in offsets.items()})
