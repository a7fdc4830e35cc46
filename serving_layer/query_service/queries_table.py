"""The table `queries`: what Hive was asked, and what it said."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, insert, select, update

from deeplambda.adapters import mysql
from deeplambda.clock import now
from deeplambda.state.tables import QUERIES
from serving_layer.query_service.messages import Answer, Query, Status

ANSWERS_KEPT = 200
"""Of up to 8 MiB each, in the server that holds the real-time view; upkeep deletes queries by their age."""
_GIVEN_UP = f"{ANSWERS_KEPT} newer answers have taken its place; send it again"
_UNFINISHED = ("queued", "running")


@dataclass(frozen=True)
class Found:
    """A kept query. answer: its `result`, as JSON, which may be of megabytes; `query` is without it."""

    query: Query
    answer: str | None

    def as_json(self) -> str:
        """The query as the service gives it: the answer as it is kept, neither read nor written anew."""
        return f'{self.query.model_dump_json(exclude={"result"})[:-1]},"result":{self.answer or "null"}}}'


class QueriesTable:
    """engine: of the account `queries`. Every method raises NotReady when MySQL does not answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, query_id: str, sql: str) -> None:
        """Add a query, queued."""
        with mysql.mysql_errors(), self._engine.begin() as connection:
            connection.execute(
                insert(QUERIES).values(id=query_id, statement=sql, store="hive", status="queued", submitted_at=now())
            )

    def find(self, query_id: str) -> Found | None:
        """The query of that id; None when there is none, or it is deleted."""
        with mysql.mysql_errors(), self._engine.connect() as connection:
            row = connection.execute(select(QUERIES).where(QUERIES.c.id == query_id)).one_or_none()
        if row is None:
            return None
        query = Query(
            id=row.id,
            status=row.status,
            store=row.store,
            sql=row.statement,
            submitted_at=row.submitted_at,
            finished_at=row.finished_at,
            error=row.error,
        )
        return Found(query, row.result)

    def begin(self, query_id: str) -> bool:
        """Mark a queued query as running; False when it is queued no longer."""
        return self._change(query_id, ("queued",), status="running")

    def end(self, query_id: str, status: Status, result: Answer | None = None, error: str | None = None) -> bool:
        """Mark a query as ended; False when it has ended already. Of answers the newest are kept."""
        kept = result.model_dump_json() if result else None
        ended = self._change(query_id, _UNFINISHED, status=status, finished_at=now(), result=kept, error=error)
        if kept is not None:
            self._give_up_old_answers()
        return ended

    def _give_up_old_answers(self) -> None:
        has_answer = QUERIES.c.result.is_not(None)
        newest = select(QUERIES.c.finished_at).where(has_answer).order_by(QUERIES.c.finished_at.desc())
        with mysql.mysql_errors(), self._engine.begin() as connection:
            if (oldest := connection.scalar(newest.offset(ANSWERS_KEPT).limit(1))) is not None:
                connection.execute(
                    update(QUERIES)
                    .where(has_answer, QUERIES.c.finished_at <= oldest)
                    .values(status="failed", result=None, error=_GIVEN_UP)
                )

    def fail_unfinished(self) -> int:
        """Mark as failed what an earlier process of the service left unfinished; returns how many."""
        error = "the query service ended before the query did; send it again"
        with mysql.mysql_errors(), self._engine.begin() as connection:
            return connection.execute(
                update(QUERIES)
                .where(QUERIES.c.status.in_(_UNFINISHED))
                .values(status="failed", finished_at=now(), error=error)
            ).rowcount

    def _change(self, query_id: str, was: tuple[str, ...], **values: Any) -> bool:
        with mysql.mysql_errors(), self._engine.begin() as connection:
            changed = connection.execute(
                update(QUERIES).where(QUERIES.c.id == query_id, QUERIES.c.status.in_(was)).values(**values)
            )
        return changed.rowcount == 1
