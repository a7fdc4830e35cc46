"""Refreshing the recent tables and publishing the gateway's metrics, on a thread that no union view waits for."""

import logging
import threading
import time
from dataclasses import dataclass

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from sqlalchemy import Engine

from deeplambda.adapters.kafka import Publisher
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.records.horizon import Horizon
from deeplambda.service.loops import LoopStatus
from deeplambda.service.metrics import MetricPublisher
from serving_layer.hive_gateway import recent
from serving_layer.hive_gateway.session import trust_this_thread

_LOOK_EVERY_S = 60
_log = logging.getLogger(__name__)

Metrics = dict[str, tuple[float, str]]
"""By the name of a metric, its value and unit."""


@dataclass
class _Application:
    horizon: Horizon
    replacement_s: float | None = None
    made_from: recent.Versions | None = None


class Refresher:
    """Refreshes an application's recent tables after `refresh`, and each minute when its labels or metrics have grown.

    `Gateway` makes one, runs it in a `Loop`, and tells it of every horizon that a union view has taken up.
    """

    def __init__(self, spark: SparkSession, settings: Settings, engine: Engine) -> None:
        self._spark, self._settings, self._engine = spark, settings, engine
        self._applications: dict[str, _Application] = {}
        self._wake = threading.Event()
        self._publisher: Publisher | None = None

    def refresh(self, application: str, horizon: Horizon, replacement_s: float | None = None) -> None:
        """Ask the thread for a refresh as of `horizon`; returns at once.

        replacement_s: how long it took to replace the union view.
        """
        known = self._applications.get(application)
        self._applications[application] = _Application(horizon, replacement_s, known.made_from if known else None)
        self._wake.set()

    def wake(self) -> None:
        """Let the thread look at once, above all whether it should stop."""
        self._wake.set()

    def run(self, status: LoopStatus, stop: threading.Event) -> None:
        """Refresh until `stop` is set: the work of a `Loop`."""
        trust_this_thread(self._spark)
        while not stop.is_set():
            for name, application in list(self._applications.items()):
                self._publish(name, self._refresh(name, application))
                status.alive()
            status.working()
            self._wake.wait(_LOOK_EVERY_S)
            self._wake.clear()

    def _refresh(self, name: str, application: _Application) -> Metrics:
        measured: Metrics = {}
        if application.replacement_s is not None:
            measured["view_replacement"] = (application.replacement_s, "s")
            application.replacement_s = None
        started, at = time.monotonic(), now()
        try:
            newest = recent.newest_versions(self._spark, name, application.horizon, at)
            if newest != application.made_from:
                rows = recent.refresh(self._spark, self._engine, name, newest, at)
                application.made_from, duration_s = newest, time.monotonic() - started
                measured |= {"recent_refresh": (duration_s, "s"), "recent_predictions": (rows, "rows")}
                _log.info("recent_predictions of %s: %d rows in %.1f s", name, rows, duration_s)
        except (NotReady, PySparkException) as exc:
            _log.warning("the recent tables of %s stay as they are: %s", name, str(exc).splitlines()[0])
        except Py4JJavaError as exc:  # what Spark has no Python class for, memory that ran out among it
            _log.warning("the recent tables of %s stay as they are: %s", name, exc.java_exception)
        return measured

    def _publish(self, application: str, measured: Metrics) -> None:
        if not measured:
            return
        try:
            self._publisher = self._publisher or Publisher(self._settings)
            metrics = MetricPublisher(self._publisher, layer="serving", part="gateway", application=application)
            for name, (value, unit) in measured.items():
                metrics.publish(name, value, unit)
            self._publisher.flush()
        except NotReady as exc:
            _log.warning("metrics of %s are lost: %s", application, exc)
