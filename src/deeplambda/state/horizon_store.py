"""Where the horizon is kept: one row for each application in MySQL, moved in one transaction with its event."""

from sqlalchemy import Connection, delete, insert, select

from deeplambda.records import topics
from deeplambda.records.horizon import Horizon
from deeplambda.records.lifecycle import BatchViewPublished
from deeplambda.state import outbox
from deeplambda.state.tables import HORIZONS


def read_horizon(connection: Connection, application: str) -> Horizon:
    """The horizon now; before the first batch view, one that has absorbed nothing."""
    row = connection.execute(select(HORIZONS).where(HORIZONS.c.application == application)).one_or_none()
    if row is None:
        return Horizon()
    return Horizon(snapshot=row.snapshot, offsets={int(p): offset for p, offset in row.offsets.items()})


def move_horizon(connection: Connection, published: BatchViewPublished) -> None:
    """Make a new batch view the visible one, in the caller's transaction."""
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
