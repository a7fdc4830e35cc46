"""What a Spark stream has done, as metrics: rows, rate, and a micro-batch's time by the parts of its way."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from deeplambda.service.metrics import MetricPublisher

_HOPS = {"queryPlanning": "planning", "walCommit": "begin", "addBatch": "work", "commitOffsets": "commit"}
"""By Spark's name of a step, ours. `latestOffset` is none: an idle stream waits in it."""


class StreamReport:
    """Adds up a stream's micro-batches from one publication to the next; the thread that runs the stream has one.

    done: by partition, the offset after the last record of the last finished batch.
    """

    def __init__(self) -> None:
        self.done: dict[int, int] = {}
        self._rows = 0
        self._durations_ms: list[Mapping[str, float]] = []

    def took(self, progress: Any, hops_ms: Mapping[str, float]) -> None:
        """Take in a stream's last progress. hops_ms: of the work itself, by hop."""
        (source,) = from_json(progress.json)["sources"]
        ends, starts = _offsets(source["endOffset"]), _offsets(source["startOffset"])
        rows = sum(end - self.done.get(p, starts.get(p, 0)) for p, end in ends.items())
        self.done = ends
        if rows > 0:
            self._rows += rows
            known = {name: float(progress.durationMs.get(key, 0)) for key, name in _HOPS.items()}
            self._durations_ms.append({**known, **hops_ms})

    def publish(self, metrics: MetricPublisher, over_s: float) -> None:
        """Publish what has been added up, and begin anew. Raises: NotReady."""
        durations_ms, rows = self._durations_ms, self._rows
        self._durations_ms, self._rows = [], 0
        if not durations_ms:
            return
        metrics.publish("rows", rows, "rows")
        metrics.publish("throughput", rows / over_s, "rows/s")
        means_ms = {
            name: sum(each.get(name, 0.0) for each in durations_ms) / len(durations_ms)
            for name in sorted({name for each in durations_ms for name in each})
        }
        for name, mean_ms in means_ms.items():
            metrics.publish(f"hop_{name}", mean_ms, "ms")
        metrics.publish("batch_duration", sum(means_ms[name] for name in _HOPS.values()) / 1e3, "s")


def _offsets(source_offset: Any) -> dict[int, int]:
    """By partition. source_offset: of Spark's Kafka source, which names one topic; None where there is none."""
    return {int(p): end for offsets in (source_offset or {}).values() for p, end in offsets.items()}
