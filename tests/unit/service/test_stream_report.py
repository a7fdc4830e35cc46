"""What a stream's micro-batches come to, as metrics."""

import json
from types import SimpleNamespace
from typing import Any

from deeplambda.service.stream_report import MOST_PARTITIONS, StreamReport


class Published(list[tuple[str, float, int | None]]):
    """In the place of a publisher: what was published, by name, value and partition."""

    def publish(self, name: str, value: float, unit: str, kafka_partition: int | None = None) -> None:
        self.append((name, value, kafka_partition))

    def values(self) -> dict[str, float]:
        return {name: value for name, value, partition in self if partition is None}


def progress(start: dict[str, int] | None, end: dict[str, int], **durations_ms: float) -> Any:
    source = {"startOffset": start and {"t": start}, "endOffset": {"t": end}}
    return SimpleNamespace(json=json.dumps({"sources": [source]}), durationMs=durations_ms)


def published(report: StreamReport, lag: dict[int, int] | None = None) -> Published:
    found = Published()
    report.publish(found, over_s=10, lag=lag or {})  # type: ignore[arg-type]
    return found


def test_rows_of_batches_that_no_look_saw_count_too() -> None:
    report = StreamReport()
    report.took(progress({"0": 100, "1": 0}, {"0": 110, "1": 5}), {})
    report.took(progress({"0": 400, "1": 5}, {"0": 410, "1": 5}), {})
    assert published(report).values()["rows"] == 315
    assert report.done == {0: 410, 1: 5}


def test_the_time_that_an_idle_stream_waits_is_no_hop_of_a_batch() -> None:
    report = StreamReport()
    report.took(progress({"0": 0}, {"0": 10}, latestOffset=900, addBatch=30, walCommit=4), {"model": 12.0})
    report.took(progress({"0": 10}, {"0": 20}, latestOffset=900, addBatch=50, walCommit=6), {"model": 20.0})
    found = published(report).values()
    assert (found["hop_work"], found["hop_begin"], found["hop_model"]) == (40, 5, 16)
    assert found["batch_duration"] == 0.045


def test_an_idle_stream_reports_its_lag_alone() -> None:
    report = StreamReport()
    report.took(progress({"0": 7}, {"0": 7}, latestOffset=1000), {})
    assert published(report, lag={0: 0}) == [("lag", 0, None)]


def test_only_partitions_that_lag_are_named_and_the_worst_of_many() -> None:
    lag = {partition: partition for partition in range(100)}
    found = [partition for name, _, partition in published(StreamReport(), lag) if name == "partition_lag"]
    assert found == [*range(99, 99 - MOST_PARTITIONS, -1)]
