"""Generations in MySQL: which training by the platform itself is under way, how far it has come, how each one ended.

A generation's row and the lifecycle record that tells of the change are one transaction. `generation_lock` makes sure
that one process works on an application's generations; the lock is gone with that process, however it ends, and a row
that is `running` under a free lock waits to be taken up.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Engine, and_, insert, select, text, update

from deeplambda.adapters.mysql import lock_name, mysql_errors, named_lock
from deeplambda.clock import now
from deeplambda.errors import Conflict
from deeplambda.records import topics
from deeplambda.records.lifecycle import GenerationEnded, GenerationStarted, GenerationStepped, LifecycleRecord
from deeplambda.state import outbox
from deeplambda.state.tables import GENERATIONS

Cause = Literal["drift", "labels", "schedule", "person"]
State = Literal["running", "promoted", "rejected", "unchanged", "held", "failed"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One row. label_offsets: by partition of the labels' topic, the first that it has not seen. data: what it learns
    from, once that is pinned. attempts: processes that have worked on it. verdict: why it ended, or a process of it."""

    application: str
    number: int
    cause: Cause
    why: str
    state: State
    step: str
    attempts: int
    started_at: datetime
    heartbeat_at: datetime
    ended_at: datetime | None
    label_offsets: dict[int, int]
    new_labels: int
    data: dict[str, Any] | None
    version: int | None
    verdict: str | None

    @property
    def is_running(self) -> bool:
        """Whether it has not ended; its process may have."""
        return self.state == "running"


@contextmanager
def generation_lock(engine: Engine, application: str) -> Iterator[Connection]:
    """Be the one process that works on the application's generations; yields the connection that holds the lock.

    Raises: Conflict, which names the generation that another process works on.
    """
    with ExitStack() as held:
        try:
            connection = held.enter_context(named_lock(engine, _lock(application)))
        except Conflict as exc:
            with engine.connect() as other:
                last = newest(other, application)
            which = f"a generation of {application}"  # that the other process has still to begin
            if last is not None and last.is_running:
                which = f"generation {last.number} of {application}"
            raise Conflict(
                f"{which} is under way in another process",
                f"follow it: 'deeplambda batch generations {application} --follow'",
            ) from exc
        yield connection


def is_worked_on(connection: Connection, application: str) -> bool:
    """Whether a process holds the lock."""
    return bool(connection.scalar(text("SELECT IS_FREE_LOCK(:name)"), _known(connection, application)) == 0)


def still_held(connection: Connection, application: str) -> bool:
    """Whether `connection` holds the lock; asking keeps the connection alive."""
    held = connection.scalar(text("SELECT IS_USED_LOCK(:name) = CONNECTION_ID()"), _known(connection, application))
    connection.rollback()
    return bool(held == 1)


def _lock(application: str) -> str:
    """The process holds it which works on the application's generations."""
    return f"deeplambda.{application}.generation"


def _known(connection: Connection, application: str) -> dict[str, str]:
    return {"name": lock_name(connection, _lock(application))}


def newest(connection: Connection, application: str) -> Generation | None:
    """The last generation that was begun; None before the first."""
    return next(iter(listed(connection, application, at_most=1)), None)


def listed(connection: Connection, application: str, at_most: int = 20) -> list[Generation]:
    """The newest ones, the newest first."""
    query = (
        select(GENERATIONS)
        .where(GENERATIONS.c.application == application)
        .order_by(GENERATIONS.c.number.desc())
        .limit(at_most)
    )
    return [_generation(row._asdict()) for row in connection.execute(query)]


def labels_judged(connection: Connection, application: str) -> dict[int, int]:
    """By partition, the first label that no version which came to the gate has seen; none before the first such."""
    at_the_gate = GENERATIONS.c.state.in_(("promoted", "rejected"))
    query = (
        select(GENERATIONS.c.label_offsets)
        .where(GENERATIONS.c.application == application, at_the_gate)
        .order_by(GENERATIONS.c.number.desc())
        .limit(1)
    )
    return {int(partition): offset for partition, offset in (connection.scalar(query) or {}).items()}


def begin(
    engine: Engine, application: str, cause: Cause, why: str, label_offsets: Mapping[int, int], new_labels: int
) -> Generation:
    """Open the next generation. The caller holds the lock, and none is running."""
    at = now()
    with mysql_errors(), engine.begin() as connection:
        before = newest(connection, application)
        generation = Generation(
            application=application,
            number=before.number + 1 if before else 1,
            cause=cause,
            why=why,
            state="running",
            step="begun",
            attempts=1,
            started_at=at,
            heartbeat_at=at,
            ended_at=None,
            label_offsets=dict(label_offsets),
            new_labels=new_labels,
            data=None,
            version=None,
            verdict=None,
        )
        connection.execute(insert(GENERATIONS).values(asdict(generation)))
        started = GenerationStarted(
            application=application, number=generation.number, cause=cause, why=why, new_labels=new_labels, at=at
        )
        outbox.record(connection, topics.LIFECYCLE, application, started)
    return generation


def take_up(engine: Engine, generation: Generation) -> Generation:
    """Note that one more process works on it."""
    return _changed(engine, generation, attempts=generation.attempts + 1)


def step(engine: Engine, generation: Generation, name: str) -> Generation:
    """Note that it has come to a step."""
    record = GenerationStepped(
        application=generation.application, number=generation.number, step=name, attempt=generation.attempts
    )
    return _changed(engine, generation, record, step=name)


def pin(
    engine: Engine, generation: Generation, data: Mapping[str, Any], label_offsets: Mapping[int, int]
) -> Generation:
    """Note what its data set is made from, so that whoever takes it up makes the same."""
    return _changed(engine, generation, data=dict(data), label_offsets=dict(label_offsets))


def trained(engine: Engine, generation: Generation, version: int) -> Generation:
    """Note the version that it trained."""
    return _changed(engine, generation, version=version)


def end(engine: Engine, generation: Generation, state: State, verdict: str) -> Generation:
    """Close it."""
    record = GenerationEnded(
        application=generation.application,
        number=generation.number,
        state=state,
        version=generation.version,
        verdict=verdict,
    )
    return _changed(engine, generation, record, state=state, verdict=verdict, ended_at=record.at)


def note(engine: Engine, generation: Generation, problem: str) -> Generation:
    """Note why its process ends before it does."""
    return _changed(engine, generation, verdict=problem)


def beat(engine: Engine, generation: Generation) -> None:
    """Note that its process lives."""
    _changed(engine, generation)


def _changed(
    engine: Engine, generation: Generation, record: LifecycleRecord | None = None, **columns: Any
) -> Generation:
    columns["heartbeat_at"] = now()
    key = and_(GENERATIONS.c.application == generation.application, GENERATIONS.c.number == generation.number)
    with mysql_errors(), engine.begin() as connection:
        connection.execute(update(GENERATIONS).where(key).values(columns))
        if record is not None:
            outbox.record(connection, topics.LIFECYCLE, generation.application, record)
    return replace(generation, **columns)


def _generation(row: dict[str, Any]) -> Generation:
    offsets = {int(partition): offset for partition, offset in row["label_offsets"].items()}  # JSON's keys are texts
    return Generation(**row | {"label_offsets": offsets})
