"""What the model service has done, by version: the statistics of Triton's extension of the protocol.

Source: triton-inference-server/server, docs/protocol/extension_statistics.md. As there, a request's share of a pass
with others is all of that pass, so durations are those that requests have seen, and of requests that have failed it is
counted how many and how long.
"""

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_KEPT_VERSIONS = 10


@dataclass(frozen=True, kw_only=True)
class Times:
    """What one pass took."""

    features_s: float
    model_s: float
    answers_s: float

    def stages(self) -> dict[str, float]:
        """By the protocol's names."""
        return {"compute_input": self.features_s, "compute_infer": self.model_s, "compute_output": self.answers_s}


OnPass = Callable[[str, int, int, Times], None]
"""Called after each pass: with application, version, rows and times."""


@dataclass
class _Duration:
    count: int = 0
    seconds: float = 0.0

    def add(self, count: int, seconds: float) -> None:
        self.count += count
        self.seconds += seconds

    def as_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": int(self.seconds * 1e9)}


def _durations() -> defaultdict[str, _Duration]:
    return defaultdict(_Duration)


@dataclass
class _Version:
    rows: int = 0
    passes: int = 0
    last_ms: int = 0
    durations: defaultdict[str, _Duration] = field(default_factory=_durations)
    by_rows: defaultdict[int, defaultdict[str, _Duration]] = field(default_factory=lambda: defaultdict(_durations))


class Statistics:
    """Counts since the process began; safe to call from any thread. Of each application the last versions are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._applications: defaultdict[str, OrderedDict[int, _Version]] = defaultdict(OrderedDict)

    def passed(self, application: str, number: int, rows: int, times: Times) -> None:
        """Count a pass through the model."""
        with self._lock:
            version = self._version(application, number)
            version.passes += 1
            version.last_ms = int(time.time() * 1000)
            for stage, seconds in times.stages().items():
                version.by_rows[rows][stage].add(1, seconds)

    def answered(self, application: str, number: int, rows: int, took_s: float, passes: Sequence[Times]) -> None:
        """Count a request that the model has answered, in so many passes; all else of its time it has waited."""
        with self._lock:
            version = self._version(application, number)
            version.rows += rows
            version.durations["success"].add(1, took_s)
            waited_s = took_s
            for stages in zip(*(times.stages().items() for times in passes), strict=True):
                seconds = sum(each_s for _, each_s in stages)
                version.durations[stages[0][0]].add(1, seconds)
                waited_s -= seconds
            version.durations["queue"].add(1, max(0.0, waited_s))  # passes of one request may run side by side

    def failed(self, application: str, number: int, took_s: float) -> None:
        """Count a request that the model was asked by, and has not answered."""
        with self._lock:
            self._version(application, number).durations["fail"].add(1, took_s)

    def as_json(self, application: str, version: int) -> dict[str, Any]:
        """Those of one version, as the protocol has them."""
        with self._lock:
            found = self._applications[application].get(version, _Version())
            stages = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
            return {
                "name": application,
                "version": str(version),
                "last_inference": found.last_ms,
                "inference_count": found.rows,
                "execution_count": found.passes,
                "inference_stats": {stage: found.durations[stage].as_json() for stage in stages},
                "batch_stats": [
                    {"batch_size": rows, **{stage: duration.as_json() for stage, duration in durations.items()}}
                    for rows, durations in sorted(found.by_rows.items())
                ],
            }

    def _version(self, application: str, version: int) -> _Version:
        versions = self._applications[application]
        if version not in versions:
            versions[version] = _Version()
            while len(versions) > _KEPT_VERSIONS:
                versions.popitem(last=False)
        return versions[version]
