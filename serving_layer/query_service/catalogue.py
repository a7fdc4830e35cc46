"""What there is: applications and published models."""

from sqlalchemy import Engine, select

from deeplambda.config import Settings
from deeplambda.loading import pack_application
from deeplambda.records import topics
from deeplambda.state import registry
from deeplambda.state.tables import MODEL_VERSIONS
from serving_layer.query_service.messages import Application, Applications, Model, Models
from serving_layer.query_service.mysql_queries import analyst_errors


def applications(settings: Settings, engine: Engine) -> Applications:
    """The applications that are served. Raises: NotReady, ConfigurationError, UnknownApplication."""
    found = []
    with analyst_errors(), engine.connect() as connection:
        for name in settings.applications:
            packed, champion = pack_application(name, settings), registry.champion(connection, name)
            found.append(
                Application(
                    name=name,
                    code_version=packed.code_version,
                    event=packed.load().event.model_json_schema(),
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
