"""What people have changed of the data: who, when and why. The lake keeps the rows; Kafka hears by the outbox."""

import getpass
import os
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select

from deeplambda.adapters.mysql import mysql_errors
from deeplambda.records import topics
from deeplambda.records.lifecycle import DataChanged
from deeplambda.state import outbox
from deeplambda.state.tables import DATA_CHANGES


def operator() -> str:
    """Who runs this process: the name of the account on this machine, or its number where it has none."""
    try:
        return getpass.getuser()[:64]
    except (ImportError, KeyError, OSError):
        return f"uid-{os.getuid()}"


def record_change(engine: Engine, change: DataChanged) -> DataChanged:
    """Write a change and the record of it, in one transaction; the change. Raises: NotReady."""
    with mysql_errors(), engine.begin() as connection:
        connection.execute(
            insert(DATA_CHANGES).values(
                application=change.application,
                kind=change.kind,
                table_name=change.table,
                snapshot=change.snapshot,
                previous=change.previous,
                subject=change.subject,
                changed_rows=change.rows,
                who=change.who,
                why=change.why,
                at=change.at,
            )
        )
        outbox.record(connection, topics.LIFECYCLE, change.application, change)
    return change


def changes(connection: Connection, application: str) -> list[Row[Any]]:
    """All changes of an application's data, the oldest first."""
    query = select(DATA_CHANGES).where(DATA_CHANGES.c.application == application)
    return list(connection.execute(query.order_by(DATA_CHANGES.c.id)))
