"""What the model service has done, by version: the statistics of Triton's extension of the protocol.

Source: triton-inference-server/server, docs/protocol/extension_statistics.md. As there, a request's share of a pass
with others is all of that pass, so durations are those that requests have seen.
"""

import threading
import time
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from typing import Any

_KEPT_VERSIONS = 10


@dataclass(frozen=True, kw_only=True)
class PassTimes:
    """One pass of `rows` rows of `requests` requests. waited_s: of these requests, added up; the rest: of the pass."""

    application: str
    version: int
    requests: int
    rows: int
    waited_s: float
    features_s: float
    model_s: float
    answers_s: float


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

    def passed(self, times: PassTimes) -> None:
        """Count a pass through the model."""
        stages = {
            "compute_input": times.features_s,
            "compute_infer": times.model_s,
            "compute_output": times.answers_s,
        }
        with self._lock:
            version = self._version(times.application, times.version)
            version.rows += times.rows
            version.passes += 1
            version.last_ms = int(time.time() * 1000)
            version.durations["queue"].add(times.requests, times.waited_s)
            for stage, seconds in stages.items():
                version.durations[stage].add(times.requests, times.requests * seconds)
                version.by_rows[times.rows][stage].add(1, seconds)

    def answered(self, application: str, version: int, took_s: float, *, succeeded: bool) -> None:
        """Count a request that the model was asked by."""
        with self._lock:
            self._version(application, version).durations["success" if succeeded else "fail"].add(1, took_s)

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
