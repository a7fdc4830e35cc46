"""The gateway: a Spark session with its tables, union views, model functions, HiveServer2 and recent tables."""

import logging
import time

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from deeplambda.adapters import mysql
from deeplambda.adapters.lake import create_tables
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.loading import pack_application
from serving_layer.hive_gateway.model_function import add_model_function
from serving_layer.hive_gateway.refresher import Refresher
from serving_layer.hive_gateway.session import gateway_session
from serving_layer.hive_gateway.union_view import UnionView

_JVM_ENDS_WITHIN_S = 10
_log = logging.getLogger(__name__)


class Gateway:
    """Serves from when it is made until `stop`.

    Raises: DeepLambdaError, PySparkException, Py4JJavaError when it cannot start.
    """

    def __init__(self, settings: Settings) -> None:
        packed = [pack_application(name, settings) for name in settings.applications]
        self._spark = gateway_session(settings)
        engine = mysql.engine(settings, "views")
        for each in packed:
            create_tables(self._spark, each.load())
        realtime_table = f"mysql.{settings.mysql_database}.realtime_predictions"
        self._views = [UnionView(self._spark, engine, each.name, realtime_table) for each in packed]
        self._refresher = Refresher(self._spark, settings, engine)
        for view in self._views:
            view.follow()  # before anybody can ask: rows of an older horizon may have been trimmed meanwhile
            self._refresher.refresh(view.application, view.horizon)
        for each in packed:
            add_model_function(self._spark, settings, each)
        self._server = self._spark._jvm.deeplambda.gateway.GatewayServer.start(self._spark._jsparkSession)
        self._refresher.start()

    def follow(self) -> None:
        """Replace the union views whose horizons have moved. The main thread calls it twice a second.

        A view stays as it is while a store does not answer; the next call tries again.
        """
        for view in self._views:
            started = time.monotonic()
            try:
                if view.follow():
                    self._refresher.refresh(view.application, view.horizon, time.monotonic() - started)
            except (NotReady, PySparkException) as exc:
                _log.warning("%s's view stays as it is: %s", view.application, str(exc).splitlines()[0])
            except Py4JJavaError as exc:  # what Spark has no Python class for, memory that ran out among it
                _log.warning("%s's view stays as it is: %s", view.application, exc.java_exception)

    def stop(self) -> None:
        """End the refresher, the sessions of clients, the Spark session and its JVM; the process ends after it."""
        self._refresher.stop()
        self._server.stop()
        jvm = self._spark.sparkContext._gateway
        self._spark.stop()
        jvm.shutdown()
        jvm.proc.stdin.close()  # pyspark's JVM ends with its standard input
        jvm.proc.wait(_JVM_ENDS_WITHIN_S)
