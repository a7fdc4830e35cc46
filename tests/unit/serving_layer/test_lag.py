"""What parts last reported of their lag."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from serving_layer.query_service.lag import Waiting, exposition_of, last_reports

AT = datetime(2026, 1, 1, tzinfo=UTC)


def metric(part: str, name: str, value: float, partition: int | None = None, after_s: float = 0) -> Any:
    at = AT + timedelta(seconds=after_s)
    return SimpleNamespace(part=part, name=name, value=value, kafka_partition=partition, at=at)


def test_the_last_report_of_each_part_counts() -> None:
    found = last_reports(
        [
            metric("archive", "lag", 900),
            metric("archive", "behind", 1),
            metric("archive", "partition_lag", 900, partition=7),
            metric("views", "lag", 3),
            metric("archive", "lag", 20, after_s=10),
            metric("archive", "behind", 0, after_s=10.01),
            metric("archive", "partition_lag", 20, partition=2, after_s=10.01),
        ]
    )
    assert found == {"stream": None, "views": Waiting(3), "archive": Waiting(20, {2: 20})}


def test_prometheus_sees_which_part_is_behind_and_in_which_partition() -> None:
    shown = exposition_of({"digits": {"stream": None, "archive": Waiting(20, {2: 20}, behind=True)}}).decode()
    assert 'deeplambda_behind{application="digits",part="archive"} 1.0' in shown
    assert 'deeplambda_partition_lag_rows{application="digits",part="archive",partition="2"} 20.0' in shown
    assert "stream" not in shown
