"""What a stream's micro-batches come to, as metrics."""

import json
from types import SimpleNamespace
from typing import Any

from deeplambda.service.stream_report import StreamReport
from tests.unit.service.published import Published


def progress(start: dict[str, int] | None, end: dict[str, int], **durations_ms: float) -> Any:
    source = {"startOffset": start and {"t": start}, "endOffset": {"t": end}}
    return SimpleNamespace(json=json.dumps({"sources": [source]}), durationMs=durations_ms)


def published(report: StreamReport) -> Published:
    found = Published()
    report.publish(found, over_s=10)  # type: ignore[arg-type]
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


def test_an_idle_stream_reports_no_batch() -> None:
    report = StreamReport()
    report.took(progress({"0": 7}, {"0": 7}, latestOffset=1000), {})
    assert published(report) == []
