"""The model registry: versions, and which of them serves. MySQL holds the truth; Kafka hears of it by the outbox."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, func, insert, literal, null, select, union_all

from deeplambda.adapters.mysql import mysql_errors, named_lock
from deeplambda.errors import BadInput, Conflict, UnfitModel
from deeplambda.records import topics
from deeplambda.records.lifecycle import ModelPromoted, ModelPublished, ModelRejected, ModelRolledBack
from deeplambda.records.verdict import Verdict
from deeplambda.state import experiment_store, outbox
from deeplambda.state.card import Card
from deeplambda.state.tables import MODEL_VERSIONS, PROMOTIONS, REJECTIONS

_PROMOTED, _ROLLED_BACK, _REJECTED = "promoted", "rolled_back", "rejected"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Who decides, and why in that one's words; verdict: the gate's, None where it was not asked. experiment: the one
    that decides, as long as it runs."""

    who: str | None = None
    why: str | None = None
    verdict: Verdict | None = None
    experiment: experiment_store.Experiment | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What records tell of it."""
        return {"who": self.who, "why": self.why, "verdict": self.verdict}


def version_of_run(engine: Engine, application: str, run: str) -> int | None:
    """The version that a training run was published as."""
    with mysql_errors(), engine.connect() as connection:
        query = select(MODEL_VERSIONS.c.version).where(
            MODEL_VERSIONS.c.application == application, MODEL_VERSIONS.c.run == run
        )
        return connection.scalar(query)


def publish(engine: Engine, application: str, run: str, store_artefacts: Callable[[int], Card]) -> int:
    """Give a finished run its version number; a run that has one keeps it.

    1. take the application's publish lock, so that numbers follow one another
    2. `store_artefacts(version)` puts weights, ONNX and card on S3 and returns the card
    3. one transaction: the version's row and its event
    A crash after 2 leaves artefacts that no row names; the next publication writes over them.
    """
    with named_lock(engine, f"deeplambda.{application}.publish", timeout_s=60):
        if (known := version_of_run(engine, application, run)) is not None:
            return known
        with engine.connect() as connection:
            newest = connection.scalar(
                select(func.max(MODEL_VERSIONS.c.version)).where(MODEL_VERSIONS.c.application == application)
            )
        card = store_artefacts((newest or 0) + 1)
        with mysql_errors(), engine.begin() as connection:
            connection.execute(
                insert(MODEL_VERSIONS).values(
                    application=application,
                    version=card.version,
                    run=run,
                    published_at=card.created_at,
                    weights_sha256=card.weights_sha256,
                    metrics=card.metrics,
                    card=card.model_dump(mode="json"),
                )
            )
            published = ModelPublished(
                application=application,
                version=card.version,
                run=run,
                weights_sha256=card.weights_sha256,
                metrics=card.metrics,
            )
            outbox.record(connection, topics.LIFECYCLE, application, published)
    return card.version


def published_card(connection: Connection, application: str, version: int) -> Card:
    """The card of a registered version. Raises: BadInput."""
    found = connection.scalar(
        select(MODEL_VERSIONS.c.card).where(
            MODEL_VERSIONS.c.application == application, MODEL_VERSIONS.c.version == version
        )
    )
    if found is None:
        raise BadInput(
            f"{application} has no model version {version}", f"list them: 'deeplambda model list {application}'"
        )
    return Card.model_validate(found)


def version_named(connection: Connection, application: str, name: str) -> Card:
    """The card of a version as people name it: `3`, `champion`, another application's `digits/3`. Raises: BadInput."""
    of, _, version = name.rpartition("/")
    of = of or application
    if version == "champion":
        if (card := champion(connection, of)) is None:
            raise BadInput(f"{of} has no champion", f"run 'deeplambda model promote {of}' first, or name a version")
        return card
    if not version.isdecimal():
        raise BadInput(f"{name!r} names no version", "name it by its number, as 'champion', or as 'digits/3'")
    return published_card(connection, of, int(version))


def cards(connection: Connection, application: str) -> list[Card]:
    """Of every version, the oldest first."""
    query = select(MODEL_VERSIONS.c.card).where(MODEL_VERSIONS.c.application == application)
    return [Card.model_validate(card) for card in connection.scalars(query.order_by(MODEL_VERSIONS.c.version))]


def champion(connection: Connection, application: str) -> Card | None:
    """The card of the version that serves; None before the first promotion."""
    version = connection.scalar(_last_promotion(application))
    return None if version is None else published_card(connection, application, version)


def champions(connection: Connection, application: str) -> list[int]:
    """The version that serves and those that it replaced, the newest first, without those that were rolled back."""
    changes = connection.execute(
        select(PROMOTIONS.c.version, PROMOTIONS.c.kind)
        .where(PROMOTIONS.c.application == application)
        .order_by(PROMOTIONS.c.id)
    )
    return _standing((change.version, change.kind) for change in changes)[::-1]


def last_change(connection: Connection, application: str) -> int:
    """The number of the newest change of champion; 0 before the first."""
    newest = select(func.max(PROMOTIONS.c.id)).where(PROMOTIONS.c.application == application)
    return connection.scalar(newest) or 0


def last_rollback(connection: Connection, application: str) -> Row[Any, Any, Any, Any] | None:
    """The newest change of champion, where that is a rollback: version, who, at; None where it is a promotion."""
    query = select(PROMOTIONS.c.kind, PROMOTIONS.c.version, PROMOTIONS.c.who, PROMOTIONS.c.at).where(
        PROMOTIONS.c.application == application
    )
    newest = connection.execute(query.order_by(PROMOTIONS.c.id.desc()).limit(1)).first()
    return newest if newest is not None and newest.kind == _ROLLED_BACK else None


def not_overtaken(connection: Connection, application: str, verdict: Verdict | None) -> None:
    """The caller's transaction holds the champion. Raises: Conflict when it has changed since the verdict was given."""
    if verdict is not None and verdict.after not in (None, last_change(connection, application)):
        raise Conflict(
            f"{application} has had another champion since version {verdict.version} was judged",
            "run it again, which judges the version beside the one that serves now",
        )


def last_promoted_at(connection: Connection, application: str, version: int) -> datetime | None:
    """When a version was last made the champion by a promotion; None when it never was."""
    newest: datetime | None = connection.scalar(
        select(func.max(PROMOTIONS.c.at)).where(
            PROMOTIONS.c.application == application, PROMOTIONS.c.version == version, PROMOTIONS.c.kind == "promoted"
        )
    )
    return newest


def held_champion(connection: Connection, application: str) -> Card:
    """The version that serves, which stays the champion until the caller's transaction ends. Raises: BadInput."""
    version = connection.scalar(_last_promotion(application).with_for_update())
    if version is None:
        raise BadInput(f"{application} has no champion", f"run 'deeplambda model promote {application}' first")
    return published_card(connection, application, version)


def still_champion(connection: Connection, card: Card) -> None:
    """Hold the version as champion until the caller's transaction ends. Raises: Conflict when another one is."""
    version = connection.scalar(_last_promotion(card.application).with_for_update())
    if version != card.version:
        raise Conflict(
            f"{card.application}/{version} has become the champion in place of version {card.version} meanwhile",
            "run it again",
        )


def best_so_far(connection: Connection, application: str) -> dict[str, int]:
    """By split, the version that did best on it when the champion was promoted; one that was forced is the best."""
    query = select(PROMOTIONS.c.verdict).where(
        PROMOTIONS.c.application == application,
        PROMOTIONS.c.version == _last_promotion(application).scalar_subquery(),
        PROMOTIONS.c.kind == _PROMOTED,
    )
    found = connection.scalar(query.order_by(PROMOTIONS.c.id.desc()).limit(1))
    return Verdict.model_validate(found).best if found else {}


def history(
    connection: Connection,
    application: str,
    limit: int | None = None,
    *,
    version: int | None = None,
    past: tuple[int, int] = (0, 0),
) -> list[Row[Any]]:
    """Promotions, rollbacks and rejections, the newest first: id (of its table), kind, version, champion (before, or
    meanwhile), at, who, why, reason, verdict. limit: how many; None: all. version: of this one alone. past: the ids of
    the last promotion or rollback, and of the last rejection, that are not asked for any more."""
    decided = ("id", "at", "who", "why", "verdict")
    changes = select(
        PROMOTIONS.c.kind,
        PROMOTIONS.c.version,
        PROMOTIONS.c.previous.label("champion"),
        null().label("reason"),
        *(PROMOTIONS.c[name] for name in decided),
    ).where(PROMOTIONS.c.application == application, PROMOTIONS.c.id > past[0])
    refusals = select(
        literal(_REJECTED).label("kind"),
        REJECTIONS.c.version,
        REJECTIONS.c.champion,
        REJECTIONS.c.reason,
        *(REJECTIONS.c[name] for name in decided),
    ).where(REJECTIONS.c.application == application, REJECTIONS.c.id > past[1])
    if version is not None:
        changes, refusals = (
            changes.where(PROMOTIONS.c.version == version),
            refusals.where(REJECTIONS.c.version == version),
        )
    both = union_all(changes, refusals)
    return list(connection.execute(both.order_by(both.selected_columns.at.desc()).limit(limit)))


def promote(engine: Engine, application: str, version: int, decision: Decision = Decision()) -> ModelPromoted | None:
    """Make `version` the champion; None when it is already. Raises: BadInput, Conflict."""
    with mysql_errors(), engine.begin() as connection:
        # First, for what is read later is as it was at the first reading that locks nothing.
        previous = connection.scalar(_last_promotion(application).with_for_update())
        card = published_card(connection, application, version)
        if previous == version:
            return None
        not_overtaken(connection, application, decision.verdict)
        if decision.experiment is not None:
            experiment_store.still_runs(connection, decision.experiment)
        promotion = _set_champion(connection, card, previous, _PROMOTED, decision)
        outbox.record(connection, topics.LIFECYCLE, application, promotion)
    return promotion


def reject(engine: Engine, application: str, version: int, reason: str, decision: Decision = Decision()) -> None:
    """Record that `version` was refused promotion, which ends an experiment with it. Raises: Conflict."""
    with mysql_errors(), engine.begin() as connection:
        rejection = ModelRejected(application=application, version=version, reason=reason, **decision.told)
        champion_version = connection.scalar(_last_promotion(application).with_for_update())
        not_overtaken(connection, application, decision.verdict)
        if decision.experiment is not None:
            experiment_store.still_runs(connection, decision.experiment)
        experiment_store.candidate_rejected(connection, application, version, reason, decision.who)
        connection.execute(insert(REJECTIONS).values(champion=champion_version, reason=reason, **_kept(rejection)))
        outbox.record(connection, topics.LIFECYCLE, application, rejection)


def roll_back(
    engine: Engine, application: str, to: int | None = None, decision: Decision = Decision()
) -> ModelRolledBack:
    """Have an earlier champion serve again: `to`, or else the one before. Raises: BadInput, UnfitModel when none was.

    Without `to`, the last promotion that stands is undone; again, the one before that. What was rolled back, or passed
    over on the way back, never comes back but by a promotion or by name.
    """
    with mysql_errors(), engine.begin() as connection:
        changes = connection.execute(
            select(PROMOTIONS.c.version, PROMOTIONS.c.kind)
            .where(PROMOTIONS.c.application == application)
            .order_by(PROMOTIONS.c.id)
            .with_for_update()
        ).all()
        standing = _standing((change.version, change.kind) for change in changes)
        earlier_ones = [version for version in standing if version != standing[-1]]
        if to is not None and to not in {change.version for change in changes}:
            raise BadInput(
                f"{application}/{to} has never served, so there is no going back to it",
                f"'deeplambda model history {application}' lists those that have; promote it instead",
            )
        if (to is None and not earlier_ones) or standing[-1:] == [to]:
            raise UnfitModel(
                f"{application} has no earlier champion to go back to"
                if to is None
                else f"{application}/{to} is the champion already",
                "promote a version: 'deeplambda model promote'",
            )
        card = published_card(connection, application, earlier_ones[-1] if to is None else to)
        promoted = _set_champion(connection, card, standing[-1], _ROLLED_BACK, decision)
        rolled_back = ModelRolledBack.model_validate(promoted.model_dump(exclude={"type"}))
        outbox.record(connection, topics.LIFECYCLE, application, rolled_back)
    return rolled_back


def _standing(changes: Iterable[tuple[int, str]]) -> list[int]:
    """Champions in their order, without those that a rollback undid or passed over; the last one serves."""
    standing: list[int] = []
    for version, kind in changes:
        if kind == _PROMOTED:
            standing.append(version)
            continue
        standing = [earlier for earlier in standing if earlier != standing[-1]]
        while version in standing and standing[-1] != version:
            standing.pop()
        if standing[-1:] != [version]:  # rollbacks once went back and forth between two versions
            standing.append(version)
    return standing


def _last_promotion(application: str) -> Select[int]:
    return (
        select(PROMOTIONS.c.version)
        .where(PROMOTIONS.c.application == application)
        .order_by(PROMOTIONS.c.id.desc())
        .limit(1)
    )


def _set_champion(
    connection: Connection, card: Card, previous: int | None, kind: str, decision: Decision
) -> ModelPromoted:
    """Write the change of champion and the record that services follow, in the caller's transaction; that record."""
    promotion = ModelPromoted(
        application=card.application,
        version=card.version,
        previous=previous,
        weights_sha256=card.weights_sha256,
        code_sha256=card.code_sha256,
        **decision.told,
    )
    experiment_store.champion_changed(connection, card.application, card.version, decision.who)
    connection.execute(insert(PROMOTIONS).values(kind=kind, previous=previous, **_kept(promotion)))
    outbox.record(connection, topics.CHAMPIONS, promotion.application, promotion)
    return promotion


def _kept(fact: ModelPromoted | ModelRejected) -> dict[str, Any]:
    """The columns that a promotion and a rejection share."""
    verdict = fact.verdict.model_dump(mode="json") if fact.verdict else None
    return {"verdict": verdict, **fact.model_dump(include={"application", "version", "at", "who", "why"})}
