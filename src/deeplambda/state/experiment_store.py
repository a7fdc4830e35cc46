"""Experiments in MySQL: which candidate is tried on live traffic, what is known of it, how each one ended.

One at a time for an application. A row and the records that tell of its change are one transaction; a change of
champion ends the experiment in the transaction of that change.
"""

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, insert, select, update

from deeplambda.errors import BadInput, Conflict
from deeplambda.records import topics
from deeplambda.records.lifecycle import ExperimentEnded, ExperimentMeasured, ExperimentStarted
from deeplambda.records.verdict import Comparison, Verdict
from deeplambda.state import outbox
from deeplambda.state.card import Card
from deeplambda.state.tables import EXPERIMENTS

Kind = Literal["shadow", "canary"]
State = Literal["running", "promoted", "rejected", "undecided", "stopped", "failed", "superseded"]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row. verdict: the gate's on the candidate before it began. labels_limit, until: when it ends undecided."""

    application: str
    number: int
    kind: Kind
    version: int
    champion: int
    share: float
    until_decided: bool
    labels_limit: int | None = None
    who: str | None = None
    why: str | None = None
    verdict: Verdict | None = None
    state: State = "running"
    started_at: datetime
    until: datetime | None = None
    ended_at: datetime | None = None
    ended_by: str | None = None
    reason: str | None = None
    answered: int = 0
    agreed: int | None = None
    failed: int = 0
    failure: str | None = None
    shed: int = 0
    labelled: int = 0
    comparison: Comparison | None = None

    @property
    def name(self) -> str:
        """As people read it."""
        return f"{self.kind} {self.number} of {self.application}"


def start(connection: Connection, experiment: Experiment, candidate: Card) -> Experiment:
    """Open it under the next number. The caller's transaction holds the champion. Raises: BadInput, Conflict."""
    if candidate.version == experiment.champion:
        raise BadInput(f"{candidate.name} is the champion already", "try another version beside it")
    before = newest(connection, experiment.application)
    if before is not None and before.state == "running":
        raise Conflict(
            f"the {before.name} runs already, with version {before.version}",
            f"end it: 'deeplambda model experiment {before.application} --stop'",
        )
    experiment = replace(experiment, number=before.number + 1 if before else 1)
    verdict = experiment.verdict.model_dump(mode="json") if experiment.verdict else None
    connection.execute(insert(EXPERIMENTS).values(asdict(experiment) | {"verdict": verdict}))
    started = ExperimentStarted(
        **{name: getattr(experiment, name) for name in ExperimentStarted.model_fields if hasattr(experiment, name)},
        weights_sha256=candidate.weights_sha256,
        code_sha256=candidate.code_sha256,
        at=experiment.started_at,
    )
    for topic in (topics.EXPERIMENTS, topics.LIFECYCLE):
        outbox.record(connection, topic, experiment.application, started)
    return experiment


def newest(connection: Connection, application: str) -> Experiment | None:
    """The last one that was begun; None before the first."""
    return next(iter(listed(connection, application, at_most=1)), None)


def running(connection: Connection, application: str) -> Experiment | None:
    """The one that has not ended."""
    found = newest(connection, application)
    return found if found is not None and found.state == "running" else None


def listed(connection: Connection, application: str, at_most: int = 20) -> list[Experiment]:
    """The newest ones, the newest first."""
    query = select(EXPERIMENTS).where(EXPERIMENTS.c.application == application)
    return [
        _experiment(row._asdict())
        for row in connection.execute(query.order_by(EXPERIMENTS.c.number.desc()).limit(at_most))
    ]


def still_runs(connection: Connection, experiment: Experiment) -> None:
    """Hold it until the caller's transaction ends. Raises: Conflict when it has ended meanwhile."""
    query = select(EXPERIMENTS.c.state).where(_key(experiment)).with_for_update()
    if (state := connection.scalar(query)) != "running":
        raise Conflict(f"the {experiment.name} has ended meanwhile: {state}", "nothing is left to decide")


def measured(connection: Connection, experiment: Experiment, **figures: Any) -> Experiment:
    """Note what is known by now, and tell it whenever the labels have doubled."""
    after = replace(experiment, **figures)
    kept = {name: getattr(after, name) for name in figures}
    if after.comparison is not None:
        kept["comparison"] = after.comparison.model_dump(mode="json")
        if after.labelled.bit_length() > experiment.labelled.bit_length():
            told = {name: getattr(after, name) for name in ExperimentMeasured.model_fields if hasattr(after, name)}
            outbox.record(connection, topics.LIFECYCLE, after.application, ExperimentMeasured(**told))
    connection.execute(update(EXPERIMENTS).where(_key(experiment)).values(kept))
    return after


def end(
    connection: Connection, experiment: Experiment, state: State, reason: str, who: str | None = None
) -> Experiment:
    """Close it."""
    ended = ExperimentEnded(
        **{name: getattr(experiment, name) for name in ("application", "number", "version", "comparison")},
        state=state,
        reason=reason,
        who=who,
    )
    columns: dict[str, Any] = {"state": state, "reason": reason, "ended_by": who, "ended_at": ended.at}
    connection.execute(update(EXPERIMENTS).where(_key(experiment)).values(columns))
    for topic in (topics.EXPERIMENTS, topics.LIFECYCLE):
        outbox.record(connection, topic, experiment.application, ended)
    return replace(experiment, **columns)


def champion_changed(connection: Connection, application: str, version: int, who: str | None) -> None:
    """End the experiment that runs, in the transaction that makes `version` the champion."""
    experiment = running(connection, application)
    if experiment is None:
        return
    if version == experiment.version:
        end(connection, experiment, "promoted", f"version {version} was made the champion", who)
    else:
        reason = f"version {version} was made the champion in place of {experiment.champion} meanwhile"
        end(connection, experiment, "superseded", reason, who)


def candidate_rejected(connection: Connection, application: str, version: int, reason: str, who: str | None) -> None:
    """End the experiment that runs, in the transaction that rejects its candidate."""
    experiment = running(connection, application)
    if experiment is not None and experiment.version == version:
        end(connection, experiment, "rejected", reason, who)


def _key(experiment: Experiment) -> Any:
    return (EXPERIMENTS.c.application == experiment.application) & (EXPERIMENTS.c.number == experiment.number)


def _experiment(row: dict[str, Any]) -> Experiment:
    verdict, comparison = row["verdict"], row["comparison"]
    row["verdict"] = Verdict.model_validate(verdict) if verdict else None
    row["comparison"] = Comparison.model_validate(comparison) if comparison else None
    return Experiment(**row | {"until_decided": bool(row["until_decided"])})
