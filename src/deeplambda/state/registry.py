"""The model registry: versions, and which of them serves. MySQL holds the truth; Kafka hears of it by the outbox."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection, Engine, func, insert, select

from deeplambda.adapters.mysql import mysql_errors, named_lock
from deeplambda.errors import BadInput, Conflict, UnfitModel
from deeplambda.records import topics
from deeplambda.records.lifecycle import ModelPromoted, ModelPublished, ModelRejected, ModelRolledBack
from deeplambda.state import outbox
from deeplambda.state.card import Card
from deeplambda.state.tables import MODEL_VERSIONS, PROMOTIONS


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


def cards(connection: Connection, application: str) -> list[Card]:
    """Of every version, the oldest first."""
    query = select(MODEL_VERSIONS.c.card).where(MODEL_VERSIONS.c.application == application)
    return [Card.model_validate(card) for card in connection.scalars(query.order_by(MODEL_VERSIONS.c.version))]


def champion(connection: Connection, application: str) -> Card | None:
    """The card of the version that serves; None before the first promotion."""
    version = connection.scalar(_last_promotion(application))
    return None if version is None else published_card(connection, application, version)


def last_promoted_at(connection: Connection, application: str, version: int) -> datetime | None:
    """When a version was last made the champion by a promotion; None when it never was."""
    newest: datetime | None = connection.scalar(
        select(func.max(PROMOTIONS.c.at)).where(
            PROMOTIONS.c.application == application, PROMOTIONS.c.version == version, PROMOTIONS.c.kind == "promoted"
        )
    )
    return newest


def still_champion(connection: Connection, card: Card) -> None:
    """Hold the version as champion until the caller's transaction ends. Raises: Conflict when another one is."""
    version = connection.scalar(_last_promotion(card.application).with_for_update())
    if version != card.version:
        raise Conflict(
            f"{card.application}/{version} has become the champion in place of version {card.version} meanwhile",
            "run it again",
        )


def promote(engine: Engine, application: str, version: int) -> ModelPromoted | None:
    """Make `version` the champion; None when it is already. Raises: BadInput."""
    with mysql_errors(), engine.begin() as connection:
        card = published_card(connection, application, version)
        previous = connection.scalar(_last_promotion(application).with_for_update())
        if previous == version:
            return None
        promotion = _set_champion(connection, card, previous, "promoted")
        outbox.record(connection, topics.LIFECYCLE, application, promotion)
    return promotion


def reject(engine: Engine, application: str, version: int, reason: str) -> None:
    """Write the event that `version` was refused promotion. The gate calls it; nothing else changes."""
    with mysql_errors(), engine.begin() as connection:
        rejection = ModelRejected(application=application, version=version, reason=reason)
        outbox.record(connection, topics.LIFECYCLE, application, rejection)


def roll_back(engine: Engine, application: str) -> ModelRolledBack:
    """Undo the last promotion that stands: the version before it serves again. Raises: UnfitModel when there is none.

    A second rollback undoes the promotion before that one; what was rolled back never comes back but by a promotion.
    """
    with mysql_errors(), engine.begin() as connection:
        changes = connection.execute(
            select(PROMOTIONS.c.version, PROMOTIONS.c.kind)
            .where(PROMOTIONS.c.application == application)
            .order_by(PROMOTIONS.c.id)
            .with_for_update()
        ).all()
        standing: list[int] = []
        for change in changes:
            if change.kind == "promoted":
                standing.append(change.version)
                continue
            standing = [version for version in standing if version != standing[-1]]
            if standing[-1:] != [change.version]:  # rollbacks once went back and forth between two versions
                standing.append(change.version)
        earlier_ones = [version for version in standing if version != standing[-1]]
        if not earlier_ones:
            raise UnfitModel(
                f"{application} has no earlier champion to go back to", "promote a version: 'deeplambda model promote'"
            )
        champion_version, earlier = standing[-1], earlier_ones[-1]
        card = published_card(connection, application, earlier)
        promoted = _set_champion(connection, card, champion_version, "rolled_back")
        rolled_back = ModelRolledBack.model_validate(promoted.model_dump(exclude={"type"}))
        outbox.record(connection, topics.LIFECYCLE, application, rolled_back)
    return rolled_back


def _last_promotion(application: str):  # type: ignore[no-untyped-def]  # SQLAlchemy infers Select[tuple[int]]
    return (
        select(PROMOTIONS.c.version)
        .where(PROMOTIONS.c.application == application)
        .order_by(PROMOTIONS.c.id.desc())
        .limit(1)
    )


def _set_champion(connection: Connection, card: Card, previous: int | None, kind: str) -> ModelPromoted:
    """Write the change of champion and the record that services follow, in the caller's transaction; that record."""
    promotion = ModelPromoted(
        application=card.application,
        version=card.version,
        previous=previous,
        weights_sha256=card.weights_sha256,
        code_sha256=card.code_sha256,
    )
    connection.execute(
        insert(PROMOTIONS).values(
            kind=kind, **promotion.model_dump(include={"application", "version", "previous", "at"})
        )
    )
    outbox.record(connection, topics.CHAMPIONS, promotion.application, promotion)
    return promotion
