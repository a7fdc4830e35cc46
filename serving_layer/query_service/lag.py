"""What waits in Kafka for stream, views and archive, as they last told: in the statistics, and for Prometheus."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from sqlalchemy import Connection, Engine, select

from deeplambda.clock import now
from deeplambda.state.tables import METRICS
from serving_layer.query_service.mysql_queries import analyst_errors, limit_time

PARTS = ("stream", "views", "archive")
_REPORTED_WITHIN = timedelta(minutes=1)
_SAME_REPORT = timedelta(seconds=5)


@dataclass
class Waiting:
    """A part's last report: the records that it has not taken up, of which partitions, and whether it keeps up."""

    rows: int
    by_partition: dict[int, int] = field(default_factory=dict)
    behind: bool = False


def waiting(connection: Connection, application: str) -> dict[str, Waiting | None]:
    """By part, what waits for it; None where it has reported nothing of late."""
    table = METRICS.c
    return last_reports(
        connection.execute(
            select(table.part, table.name, table.kafka_partition, table.value, table.at)
            .where(
                table.at >= now() - _REPORTED_WITHIN,
                table.application == application,
                table.part.in_(PARTS),
                table.name.in_(("lag", "behind", "partition_lag")),
            )
            .order_by(table.kafka_offset)
        ).all()
    )


def last_reports(metrics: Iterable[Any]) -> dict[str, Waiting | None]:
    """The same of rows of `metrics`, the oldest first: a part's metric `lag`, and those beside it."""
    reports: dict[str, Waiting | None] = dict.fromkeys(PARTS)
    last = {row.part: row for row in metrics if row.name == "lag"}
    for part, row in last.items():
        reports[part] = Waiting(int(row.value))
    for row in metrics:
        report = reports[row.part]
        if report is None or abs(row.at - last[row.part].at) > _SAME_REPORT:
            continue
        if row.name == "behind":
            report.behind = bool(row.value)
        elif row.name == "partition_lag":
            report.by_partition[row.kafka_partition] = int(row.value)
    return reports


def exposition(engine: Engine, applications: tuple[str, ...]) -> bytes:
    """As Prometheus reads it. engine: of the account `reader`. Raises: NotReady."""
    with analyst_errors(), engine.connect() as connection:
        limit_time(connection)
        return exposition_of({name: waiting(connection, name) for name in applications})


def exposition_of(reports: Mapping[str, Mapping[str, Waiting | None]]) -> bytes:
    """The same of reports by application and part that are known."""
    registry = CollectorRegistry()
    labels = ["application", "part"]
    lag = Gauge("deeplambda_lag_rows", "Records that wait in Kafka", labels, registry=registry)
    behind = Gauge("deeplambda_behind", "1 where more comes than is worked off", labels, registry=registry)
    of_partition = Gauge(
        "deeplambda_partition_lag_rows",
        "Records that wait, of the partitions in which most wait; for the archive, of events and labels together",
        [*labels, "partition"],
        registry=registry,
    )
    for application, parts in reports.items():
        for part, report in parts.items():
            if report is not None:
                lag.labels(application, part).set(report.rows)
                behind.labels(application, part).set(report.behind)
                for partition, rows in report.by_partition.items():
                    of_partition.labels(application, part, str(partition)).set(rows)
    return generate_latest(registry)
