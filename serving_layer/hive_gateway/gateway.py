"""The gateway: a Spark session with its tables, union views, model functions, HiveServer2 and recent tables.

Each application has a thread of its own, so that one whose code cannot be loaded, or hangs while it is, harms no other.
"""

import logging
import threading
import time
from contextlib import suppress
from functools import partial

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from deeplambda.adapters import mysql
from deeplambda.adapters.lake import create_tables
from deeplambda.config import Settings
from deeplambda.errors import Conflict, NotReady
from deeplambda.loading import pack_application
from deeplambda.service.loops import Loop, LoopStatus, in_one_line
from serving_layer.hive_gateway.model_function import add_model_function
from serving_layer.hive_gateway.refresher import Refresher
from serving_layer.hive_gateway.session import gateway_session, trust_this_thread
from serving_layer.hive_gateway.union_view import UnionView

_JVM_ENDS_WITHIN_S = 10
_LOOPS_END_WITHIN_S = 10.0
_FOLLOW_EVERY_S = 0.5
_FIRST_LOOK_WITHIN_S = 60.0
_log = logging.getLogger(__name__)


class Gateway:
    """Serves from when it is made until `stop`.

    Raises: DeepLambdaError, PySparkException, Py4JJavaError when it cannot start.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._spark = gateway_session(settings)
        self._engine = mysql.engine(settings, "views")
        self._stopping = threading.Event()
        self._refresher = Refresher(self._spark, settings, self._engine)
        self._applications: dict[str, Loop] = {}
        looked: list[threading.Event] = []
        for name in settings.applications:
            looked.append(threading.Event())
            self._applications[name] = Loop(name, partial(self._serve, name, looked[-1]), self._stopping)
            self._applications[name].start()
        # Before anybody can ask: rows of an older horizon may have been trimmed meanwhile.
        deadline_s = time.monotonic() + _FIRST_LOOK_WITHIN_S
        for each in looked:
            each.wait(max(0.0, deadline_s - time.monotonic()))
        self._server = self._spark._jvm.deeplambda.gateway.GatewayServer.start(self._spark._jsparkSession)
        self._refreshing = Loop("refresher", self._refresher.run, self._stopping)
        self._refreshing.start()

    @property
    def states(self) -> dict[str, str]:
        """By application, and for the refresher, `running` or why it fails; for the heartbeat."""
        states = {name: loop.status.state for name, loop in self._applications.items()}
        return states | {"refresher": self._refreshing.status.state}

    @property
    def is_gone(self) -> bool:
        """Whether the JVM has ended, so that nobody is served."""
        return self._spark.sparkContext._gateway.proc.poll() is not None

    def stop(self) -> None:
        """End the threads, the sessions of clients, the Spark session and its JVM; the process ends after it."""
        self._stopping.set()
        if self.is_gone:
            return
        self._refresher.wake()
        ended_by_s = time.monotonic() + _LOOPS_END_WITHIN_S
        for loop in (self._refreshing, *self._applications.values()):
            loop.join(max(0.0, ended_by_s - time.monotonic()))
        self._server.stop()
        jvm = self._spark.sparkContext._gateway
        self._spark.stop()
        jvm.shutdown()
        jvm.proc.stdin.close()  # pyspark's JVM ends with its standard input
        jvm.proc.wait(_JVM_ENDS_WITHIN_S)

    def _serve(self, name: str, looked: threading.Event, status: LoopStatus, stop: threading.Event) -> None:
        """Make what one application needs, then replace its union view whenever the horizon has moved.

        The work of a `Loop`. looked: set once the view shows the newest horizon, or cannot.
        """
        trust_this_thread(self._spark)
        realtime_table = f"mysql.{self._settings.mysql_database}.realtime_predictions"
        view = UnionView(self._spark, self._engine, name, realtime_table)
        try:
            packed = pack_application(name, self._settings)
            create_tables(self._spark, packed.load())
            add_model_function(self._spark, self._settings, packed)
            self._follow(view, status)
        except Exception:  # a user's code may raise anything; tables that are there are served without it
            with suppress(Conflict, NotReady, PySparkException, Py4JJavaError):
                self._follow_once(view)
            raise
        finally:
            looked.set()
        while not stop.wait(_FOLLOW_EVERY_S):
            self._follow(view, status)

    def _follow(self, view: UnionView, status: LoopStatus) -> None:
        """Replace the view when its horizon has moved; it stays as it is while a store does not answer."""
        try:
            self._follow_once(view)
        except (Conflict, NotReady, PySparkException) as exc:
            status.waiting(f"the view stays as it is: {in_one_line(exc)}")
        except Py4JJavaError as exc:  # what Spark has no Python class for, memory that ran out among it
            status.waiting(f"the view stays as it is: {exc.java_exception}")
        else:
            status.working()

    def _follow_once(self, view: UnionView) -> None:
        started = time.monotonic()
        if view.follow():
            self._refresher.refresh(view.application, view.horizon, time.monotonic() - started)
