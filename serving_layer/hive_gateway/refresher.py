"""Refreshing the recent tables and publishing the gateway's metrics, on a thread that no union view waits for."""

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime

from pyspark.sql import SparkSession
from sqlalchemy import Engine

from deeplambda.adapters.kafka import Publisher
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.records.horizon import Horizon
from deeplambda.service.loops import LoopStatus, in_one_line
from deeplambda.service.metrics import MetricPublisher
from deeplambda.state.tables import RECENT_PREDICTIONS
from serving_layer.hive_gateway import recent
from serving_layer.hive_gateway.session import trust_this_thread

_LOOK_EVERY_S = 60
_log = logging.getLogger(__name__)

Metrics = dict[str, tuple[float, str]]
"""By the name of a metric, its value and unit."""


@dataclass
class _Recent:
    """A recent table: what it was made from, and when it was last found to be as it ought to be."""

    made_from: recent.Versions | None = None
    good_at: datetime | None = None


@dataclass
class _Application:
    horizon: Horizon
    replacement_s: float | None = None
    tables: dict[str, _Recent] = field(default_factory=lambda: {table.name: _Recent() for table in recent.TABLES})


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
        known = self._applications.get(application) or _Application(horizon)
        self._applications[application] = _Application(horizon, replacement_s, known.tables)
        self._wake.set()

    def wake(self) -> None:
        """Let the thread look at once, above all whether it should stop."""
        self._wake.set()

    def run(self, status: LoopStatus, stop: threading.Event) -> None:
        """Refresh until `stop` is set: the work of a `Loop`."""
        trust_this_thread(self._spark)
        while not stop.is_set():
            failures = []
            for name, application in list(self._applications.items()):
                measured, failed = self._refresh(name, application, status)
                failures += failed
                self._publish(name, measured)
            if failures:
                status.waiting("; ".join(failures))
            else:
                status.working()
            self._wake.wait(_LOOK_EVERY_S)
            self._wake.clear()

    def _refresh(self, name: str, application: _Application, status: LoopStatus) -> tuple[Metrics, list[str]]:
        """What was measured, and why a table stays as it is."""
        measured, failed, at = dict[str, tuple[float, str]](), list[str](), now()
        if application.replacement_s is not None:
            measured["view_replacement"] = (application.replacement_s, "s")
            application.replacement_s = None
        newest: recent.Versions | None = None
        for table in recent.TABLES:
            known, started = application.tables[table.name], time.monotonic()
            try:
                newest = newest or recent.newest_versions(self._spark, name, application.horizon, at)
                if newest != known.made_from:
                    rows = recent.refresh(self._spark, self._engine, name, table, newest, at)
                    known.made_from, duration_s = newest, time.monotonic() - started
                    if table is RECENT_PREDICTIONS:
                        measured |= {"recent_refresh": (duration_s, "s"), "recent_predictions": (rows, "rows")}
                    _log.info("%s of %s: %d rows in %.1f s", table.name, name, rows, duration_s)
                known.good_at = at
            except Exception as exc:  # whatever it is, the other tables have their turn
                since = f"has been since {known.good_at:%Y-%m-%d %H:%M:%S} UTC" if known.good_at else "was at the start"
                failed.append(f"{table.name} of {name} stays as it {since}: {in_one_line(exc)}")
            status.alive()
        return measured, failed

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
