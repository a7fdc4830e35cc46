"""What waits in Kafka for stream and views, as they last reported it: in the statistics, and for Prometheus."""

from collections.abc import Mapping
from datetime import timedelta

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from sqlalchemy import Connection, Engine, select

from deeplambda.clock import now
from deeplambda.state.tables import METRICS
from serving_layer.query_service.mysql_queries import analyst_errors, limit_time

_PARTS = ("stream", "views")
_REPORTED_WITHIN = timedelta(minutes=1)
_SAME_REPORT = timedelta(seconds=5)


def waiting(connection: Connection, application: str) -> dict[str, int | None]:
    """By part, the records that it has not taken up; None where it has reported none of late."""
    table = METRICS.c
    reported = connection.execute(
        select(table.part, table.value)
        .where(
            table.at >= now() - _REPORTED_WITHIN,
            table.application == application,
            table.part.in_(_PARTS),
            table.name == "lag",
        )
        .order_by(table.kafka_offset)
    )
    return dict.fromkeys(_PARTS) | {row.part: int(row.value) for row in reported}


def waiting_by_partition(connection: Connection, application: str) -> dict[int, int]:
    """Those that wait for the stream, of the partitions in which any do."""
    table = METRICS.c
    reported = connection.execute(
        select(table.name, table.kafka_partition, table.value, table.at)
        .where(
            table.at >= now() - _REPORTED_WITHIN,
            table.application == application,
            table.part == "stream",
            table.name.in_(("lag", "partition_lag")),
        )
        .order_by(table.kafka_offset)
    ).all()
    last = max((row.at for row in reported if row.name == "lag"), default=None)
    return {
        row.kafka_partition: int(row.value)
        for row in reported
        if last is not None and row.kafka_partition is not None and row.at > last - _SAME_REPORT
    }


def exposition(engine: Engine, applications: tuple[str, ...]) -> bytes:
    """Both as Prometheus reads them. engine: of the account `analyst`. Raises: NotReady."""
    with analyst_errors(), engine.connect() as connection:
        limit_time(connection)
        return exposition_of(
            {name: waiting(connection, name) for name in applications},
            {name: waiting_by_partition(connection, name) for name in applications},
        )


def exposition_of(
    by_part: Mapping[str, Mapping[str, int | None]], by_partition: Mapping[str, Mapping[int, int]]
) -> bytes:
    """The same of figures by application that are known."""
    registry = CollectorRegistry()
    lag = Gauge("deeplambda_lag_rows", "Records that wait in Kafka", ["application", "part"], registry=registry)
    of_partition = Gauge(
        "deeplambda_stream_partition_lag_rows",
        "Events that wait to be scored, of the partitions in which most wait",
        ["application", "partition"],
        registry=registry,
    )
    for application, parts in by_part.items():
        for part, rows in parts.items():
            if rows is not None:
                lag.labels(application, part).set(rows)
    for application, partitions in by_partition.items():
        for partition, rows in partitions.items():
            of_partition.labels(application, str(partition)).set(rows)
    return generate_latest(registry)
