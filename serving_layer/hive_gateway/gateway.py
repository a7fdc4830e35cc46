"""The gateway's parts put together: session, tables, union views, model functions, HiveServer2, recent tables."""

import logging
import time

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from sqlalchemy import Engine

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.lake import create_tables
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.lifecycle import now
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.runtime_metrics import Meter
from serving_layer import recent
from serving_layer.hive_gateway.model_function import add_model_function
from serving_layer.hive_gateway.session import gateway_session
from serving_layer.hive_gateway.union_view import UnionView

_LOOK_FOR_NEWS_S = 60
_JVM_ENDS_WITHIN_S = 10
_LOG = logging.getLogger(__name__)


class Gateway:
    """Serves from when it is made until `stop`. Raises: DeepLambdaError, PySparkException when it cannot start."""

    def __init__(self, settings: Settings) -> None:
        packed = [pack_application(name, settings) for name in settings.applications]
        self._settings = settings
        self._spark = gateway_session(settings)
        engine = mysql.engine(settings, "views")
        self._followed = [_Followed(self._spark, engine, settings, each) for each in packed]
        for each in packed:
            add_model_function(self._spark, settings, each)
        self._server = self._spark._jvm.deeplambda.gateway.GatewayServer.start(self._spark._jsparkSession)
        self._publisher: Publisher | None = None

    def follow(self) -> None:
        """Bring up to date what follows the horizon and the lake; a store that does not answer is waited for."""
        for each in self._followed:
            try:
                figures = each.follow()
            except (NotReady, PySparkException) as exc:
                _LOG.warning("%s stays as it is: %s", each.application, str(exc).splitlines()[0])
            except Py4JJavaError as exc:  # what Spark has no Python class for, memory that ran out among it
                _LOG.warning("%s stays as it is: %s", each.application, exc.java_exception)
            else:
                self._measure(each.application, figures)

    def stop(self) -> None:
        """End the sessions of clients, the session and its JVM."""
        self._server.stop()
        jvm = self._spark.sparkContext._gateway
        self._spark.stop()
        jvm.shutdown()
        jvm.proc.stdin.close()  # pyspark's JVM ends with its standard input
        jvm.proc.wait(_JVM_ENDS_WITHIN_S)

    def _measure(self, application: str, figures: dict[str, tuple[float, str]]) -> None:
        if not figures:
            return
        try:
            self._publisher = self._publisher or Publisher(self._settings)
            meter = Meter(self._publisher, layer="serving", part="gateway", application=application)
            for name, (value, unit) in figures.items():
                meter.measure(name, value, unit)
            self._publisher.flush()
        except NotReady as exc:
            _LOG.warning("figures of %s are lost: %s", application, exc)


class _Followed:
    """One application's union view and recent tables."""

    def __init__(self, spark: SparkSession, engine: Engine, settings: Settings, packed: PackedApplication) -> None:
        self.application = packed.name
        self._spark, self._engine = spark, engine
        create_tables(spark, packed.load())
        self._view = UnionView(spark, engine, packed.name, f"mysql.{settings.mysql_database}.realtime_predictions")
        self._view.follow()
        self._made_from: recent.Versions | None = None
        self._look_again_at = 0.0

    def follow(self) -> dict[str, tuple[float, str]]:
        """Follow once; returns what it took, by name a value and its unit. Raises: NotReady, PySparkException."""
        started, figures = time.monotonic(), {}
        if self._view.follow():
            figures["view_replacement"] = (time.monotonic() - started, "s")
        if figures or started >= self._look_again_at:
            self._look_again_at = started + _LOOK_FOR_NEWS_S
            figures |= self._refresh_recent()
        return figures

    def _refresh_recent(self) -> dict[str, tuple[float, str]]:
        started, at = time.monotonic(), now()
        newest = recent.newest_versions(self._spark, self.application, self._view.horizon, at)
        if newest == self._made_from:
            return {}
        rows = recent.refresh(self._spark, self._engine, self.application, newest, at)
        self._made_from = newest
        duration_s = time.monotonic() - started
        _LOG.info("recent_predictions of %s: %d rows in %.1f s", self.application, rows, duration_s)
        return {"recent_refresh": (duration_s, "s"), "recent_predictions": (rows, "rows")}
