"""The model service's metrics: for Prometheus at /metrics, and every ten seconds on the topic `deeplambda.metrics`."""

import logging
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from http import HTTPMethod, HTTPStatus

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from deeplambda.adapters.kafka import Publisher
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.service.metrics import MetricPublisher
from speed_layer.model_service.statistics import Statistics, Times

log = logging.getLogger(__name__)

REPORT_EVERY_S = 10.0
_LATENCY_BUCKETS_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_BATCH_BUCKETS_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
_KEPT_LATENCIES = 10_000


@dataclass
class Window:
    """Counts and latencies of one application's requests since the last report."""

    latencies_ms: list[float] = field(default_factory=list)
    requests: int = 0
    errors: int = 0
    predictions: int = 0


class ServiceMetrics:
    """Counts requests, predictions and models; safe to call from any thread."""

    def __init__(self, applications: tuple[str, ...]) -> None:
        self.registry = CollectorRegistry()
        self.statistics = Statistics()
        prefix = "deeplambda_model_service"
        self._requests = Counter(
            f"{prefix}_requests", "Requests answered", ["route", "method", "status"], registry=self.registry
        )
        self._latency_s = Histogram(
            f"{prefix}_request_seconds",
            "From a request's first byte to its answer",
            ["route"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            f"{prefix}_requests_in_progress", "Requests that wait for the model or a parser, or are in it",
            registry=self.registry,
        )  # fmt: skip
        self._predictions = Counter(
            f"{prefix}_predictions", "Rows scored", ["application", "version"], registry=self.registry
        )
        self._batch_rows = Histogram(
            f"{prefix}_batch_rows", "Rows of a request", ["application"], buckets=_BATCH_BUCKETS_ROWS,
            registry=self.registry,
        )  # fmt: skip
        self._pass_rows = Histogram(
            f"{prefix}_pass_rows", "Rows of a pass through the model", ["application"], buckets=_BATCH_BUCKETS_ROWS[:7],
            registry=self.registry,
        )  # fmt: skip
        self._version = Gauge(
            f"{prefix}_model_version", "The version that serves; 0: none", ["application"], registry=self.registry
        )
        self._swaps = Counter(f"{prefix}_model_swaps", "Models put in place", ["application"], registry=self.registry)
        self._failures = Counter(
            f"{prefix}_model_load_failures", "Champions that could not be loaded", ["application"],
            registry=self.registry,
        )  # fmt: skip
        for application in applications:
            self._version.labels(application).set(0)
            self._swaps.labels(application)
            self._failures.labels(application)
        # to look a child up costs more than to count
        self._requests_of, self._latency_of = cache(self._requests.labels), cache(self._latency_s.labels)
        self._predictions_of, self._batch_rows_of = cache(self._predictions.labels), cache(self._batch_rows.labels)
        self._lock = threading.Lock()
        self._windows: dict[str, Window] = defaultdict(Window)

    def answered(self, route: str, method: str, status: int, took_s: float, application: str | None) -> None:
        """Count a request; the web application calls this after each reply. application: None when it is not known."""
        self._latency_of(route).observe(took_s)
        self._count(route, method, status, application, took_s * 1000)

    def shed(self, method: str, application: str | None) -> None:
        """Count a request that was refused before it was read; the worker calls this."""
        self._count("shed", method, HTTPStatus.TOO_MANY_REQUESTS, application, None)

    def _count(self, route: str, method: str, status: int, application: str | None, latency_ms: float | None) -> None:
        known = method if method in HTTPMethod.__members__ else "other"
        self._requests_of(route, known, str(int(status))).inc()
        if application is not None:
            with self._lock:
                window = self._windows[application]
                window.requests += 1
                window.errors += status >= 400
                if latency_ms is not None and len(window.latencies_ms) < _KEPT_LATENCIES:
                    window.latencies_ms.append(latency_ms)

    def scored(self, application: str, version: int, rows: int, took_s: float, passes: Sequence[Times]) -> None:
        """Count a request whose rows the model has scored, in so many passes."""
        self.statistics.answered(application, version, rows, took_s, passes)
        self._predictions_of(application, str(version)).inc(rows)
        self._batch_rows_of(application).observe(rows)
        with self._lock:
            self._windows[application].predictions += rows

    def passed(self, application: str, version: int, rows: int, times: Times) -> None:
        """Count a pass through the model, which requests in flight have shared."""
        self._pass_rows.labels(application).observe(rows)
        self.statistics.passed(application, version, rows, times)

    def swapped(self, application: str, version: int) -> None:
        """Count a swap to `version`, of which 0 is none; a `ChampionWatch` calls this."""
        self._version.labels(application).set(version)
        self._swaps.labels(application).inc(version > 0)

    def load_failed(self, application: str) -> None:
        """Count a champion that could not be loaded; a `ChampionWatch` calls this."""
        self._failures.labels(application).inc()

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def take_windows(self) -> dict[str, Window]:
        """The windows since the last call, by application; the reporter takes them."""
        with self._lock:
            taken, self._windows = self._windows, defaultdict(Window)
        return taken


class Reporter:
    """Sends the metrics of each window to Kafka from a thread of its own; a window that cannot be sent is dropped."""

    def __init__(self, settings: Settings, metrics: ServiceMetrics) -> None:
        self._settings, self._service_metrics = settings, metrics
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._report, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; returns once the thread has ended."""
        self._stopped.set()
        self._thread.join(timeout=2)

    def _report(self) -> None:
        publisher: Publisher | None = None
        while not self._stopped.wait(REPORT_EVERY_S):
            windows = self._service_metrics.take_windows()
            try:
                publisher = publisher or Publisher(self._settings)
                for application, window in windows.items():
                    _send(MetricPublisher(publisher, layer="speed", part="model", application=application), window)
                publisher.flush(timeout_s=REPORT_EVERY_S)
            except NotReady as exc:
                log.warning("metrics not reported: %s", exc)
            except Exception:  # the thread goes on: no later window should be lost with this one
                log.exception("metrics not reported")


def _send(metrics: MetricPublisher, window: Window) -> None:
    metrics.publish("requests", window.requests, "1")
    metrics.publish("errors", window.errors, "1")
    metrics.publish("predictions", window.predictions, "rows")
    if window.latencies_ms:
        p50_ms, p99_ms = np.percentile(window.latencies_ms, [50, 99])
        metrics.publish("latency_p50", float(p50_ms), "ms")
        metrics.publish("latency_p99", float(p99_ms), "ms")
