"""The outbox: a state change that must also be an event is one MySQL transaction that writes both.

1. `record` writes the event's row in the transaction that changes the state.
2. `relay` sends rows that are not yet published, in order, each once the broker has stored the one before: of two that
   are under way, the first may be refused for a moment, and is then stored behind the second.
3. Only then does it mark them published. A crash between 2 and 3 sends a row twice; consumers are idempotent.
"""

from typing import Any

from pydantic_core import to_json
from sqlalchemy import Connection, Engine, insert, select, update

from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.mysql import mysql_errors
from deeplambda.clock import now
from deeplambda.state.tables import OUTBOX

_AT_ONCE = 100


def record(connection: Connection, topic: str, key: str, value: Any) -> None:
    """Write one event's row in the caller's transaction."""
    connection.execute(
        insert(OUTBOX).values(topic=topic, record_key=key, value=to_json(value).decode(), written_at=now())
    )


def relay(engine: Engine, publisher: Publisher) -> int:
    """Publish what waits in the outbox; returns how many rows. Relays take turns, so order holds. Raises: NotReady."""
    waiting = (
        select(OUTBOX).where(OUTBOX.c.published_at.is_(None)).order_by(OUTBOX.c.id).limit(_AT_ONCE).with_for_update()
    )
    with mysql_errors(), engine.begin() as connection:
        rows = connection.execute(waiting).all()
        for row in rows:
            publisher.send_bytes(row.topic, row.record_key, row.value.encode())
            publisher.flush()
        if rows:
            connection.execute(
                update(OUTBOX).where(OUTBOX.c.id.in_([row.id for row in rows])).values(published_at=now())
            )
    return len(rows)
