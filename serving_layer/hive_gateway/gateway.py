"""The gateway's parts put together: session, tables, union views, HiveServer2."""

import logging

from pyspark.errors import PySparkException

from deeplambda.adapters import mysql
from deeplambda.adapters.lake import create_tables
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.loading import pack_application
from serving_layer.hive_gateway.session import gateway_session
from serving_layer.hive_gateway.union_view import UnionView

_LOG = logging.getLogger(__name__)


class Gateway:
    """Serves from when it is made until `stop`. Raises: DeepLambdaError, PySparkException when it cannot start."""

    def __init__(self, settings: Settings) -> None:
        packed = [pack_application(name, settings) for name in settings.applications]
        self._spark = gateway_session(settings)
        engine = mysql.engine(settings, "views")
        realtime_table = f"mysql.{settings.mysql_database}.realtime_predictions"
        self._views = [UnionView(self._spark, engine, each.name, realtime_table) for each in packed]
        for each, view in zip(packed, self._views, strict=True):
            create_tables(self._spark, each.load())
            view.follow()
        self._server = self._spark._jvm.deeplambda.gateway.GatewayServer.start(self._spark._jsparkSession)

    def follow(self) -> None:
        """Bring up to date what follows the horizon; a store that does not answer is waited for."""
        for view in self._views:
            try:
                view.follow()
            except (NotReady, PySparkException) as exc:
                _LOG.warning("%s stays as it is: %s", view.application, str(exc).splitlines()[0])

    def stop(self) -> None:
        """End the sessions of clients and the session."""
        self._server.stop()
        self._spark.stop()
