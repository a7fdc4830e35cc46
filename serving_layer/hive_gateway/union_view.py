"""The view `<application>.all_predictions`: always the union of both views at the newest horizon.

The horizon stands as literals in the view's text. It is an Iceberg view, which one write to the metastore replaces (a
plain Hive view would be dropped and made again), so a query is planned on the old horizon or on the new one. A
query planned on the old one still finds its real-time rows, for `views.trim` keeps them until the new one has been
shown for longer than any query may run.

1. Take the database's lock of the view: no gateway may put an older horizon in the place of a newer one.
2. Read the horizon, and replace the view, which all gateways share.
3. Record in MySQL that it is shown, by the connection that holds the lock: whoever has lost it records nothing.
A crash before 3 leaves rows untrimmed until the next gateway replaces the view once more.
"""

import logging

from pyspark.sql import SparkSession
from sqlalchemy import Engine

from deeplambda.adapters import mysql
from deeplambda.adapters.lake import lacking_columns
from deeplambda.records.horizon import Horizon, all_predictions_sql
from deeplambda.state.horizon_store import read_horizon, record_shown

_LOCK_WITHIN_S = 5
_log = logging.getLogger(__name__)


class UnionView:
    """One application's view; the first `follow` makes it. `horizon` is the one that it shows."""

    def __init__(self, spark: SparkSession, engine: Engine, application: str, realtime_table: str) -> None:
        self.application = application
        self.horizon = Horizon()
        self._made = False
        self._spark, self._engine, self._realtime_table = spark, engine, realtime_table
        self._name = f"spark_catalog.{application}.all_predictions"

    def follow(self) -> bool:
        """Replace the view when the horizon in MySQL has moved; returns whether it had.

        `Gateway` calls it before it serves, and twice a second from then on. Raises: NotReady; Conflict while another
        gateway is at it.
        """
        with mysql.mysql_errors(), self._engine.connect() as connection:
            if self._made and read_horizon(connection, self.application) == self.horizon:
                return False
        lock = f"deeplambda.{self.application}.union_view"
        with mysql.named_lock(self._engine, lock, _LOCK_WITHIN_S) as connection:
            newest = read_horizon(connection, self.application)
            lacking = lacking_columns(self._spark, self.application, newest)
            text = all_predictions_sql(self.application, newest, self._realtime_table, lacking)
            self._spark.sql(f"CREATE OR REPLACE VIEW {self._name} AS {text}")
            if newest.snapshot is not None:
                record_shown(connection, self.application, newest)
                connection.commit()
        self.horizon, self._made = newest, True
        _log.info("%s shows snapshot %s and the real-time rows past it", self._name, newest.snapshot)
        return True
