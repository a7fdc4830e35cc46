"""What there is: applications and published models."""

import logging

from sqlalchemy import Engine, select

from deeplambda.config import Settings
from deeplambda.loading import pack_application
from deeplambda.records import topics
from deeplambda.state import registry
from deeplambda.state.tables import MODEL_VERSIONS
from serving_layer.query_service.messages import Application, Applications, Model, Models
from serving_layer.query_service.mysql_queries import analyst_errors

_log = logging.getLogger(__name__)


def applications(settings: Settings, engine: Engine) -> Applications:
    """The applications that are served, without those whose code cannot be loaded. Raises: NotReady."""
    found = []
    with analyst_errors(), engine.connect() as connection:
        for name in settings.applications:
            champion = registry.champion(connection, name)
            try:
                packed = pack_application(name, settings)
                schema = packed.load().event.model_json_schema()
            except Exception as exc:  # a user's code may raise anything; the others are listed all the same
                _log.warning("%s is not listed, for its code cannot be loaded: %s", name, exc)
                continue
            found.append(
                Application(
                    name=name,
                    code_version=packed.code_version,
                    event=schema,
                    topics={
                        "events": topics.events(name),
                        "labels": topics.labels(name),
                        "predictions": topics.predictions(name),
                        "dead_letters": topics.dead_letters(name),
                    },
                    champion=champion.version if champion else None,
                )
            )
    return Applications(applications=found)


def models(engine: Engine, application: str) -> Models:
    """An application's published versions. Raises: NotReady."""
    table = MODEL_VERSIONS.c
    with analyst_errors(), engine.connect() as connection:
        champion = registry.champion(connection, application)
        found = connection.execute(
            select(table.version, table.run, table.published_at, table.weights_sha256, table.metrics)
            .where(table.application == application)
            .order_by(table.version.desc())
        )
        return Models(
            models=[
                Model(
                    application=application,
                    version=row.version,
                    champion=champion is not None and row.version == champion.version,
                    run=row.run,
                    published_at=row.published_at,
                    weights_sha256=row.weights_sha256,
                    metrics=row.metrics,
                )
                for row in found
            ]
        )
