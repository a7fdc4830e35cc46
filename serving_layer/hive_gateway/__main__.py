"""Run the gateway: `python -m serving_layer.hive_gateway`."""

import logging
import sys

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from deeplambda.config import load_settings
from deeplambda.errors import DeepLambdaError
from deeplambda.service.heartbeat import write_heartbeat
from deeplambda.service.logs import log_to_stderr
from deeplambda.service.loops import stop_on_signals
from serving_layer.hive_gateway.gateway import Gateway

_BEAT_S = 2.0
_log = logging.getLogger(__name__)


def main() -> int:
    """Serve until SIGTERM or SIGINT, and tell by a heartbeat which application fails; returns the exit status."""
    log_to_stderr()
    stopping = stop_on_signals()
    try:
        settings = load_settings()
        gateway = Gateway(settings)
    except (DeepLambdaError, PySparkException) as exc:
        _log.error("the gateway cannot start: %s", str(exc).splitlines()[0])
        return 1
    except Py4JJavaError as exc:
        _log.error("the gateway cannot start: %s", exc.java_exception)
        return 1
    _log.info("ready")
    try:
        while not stopping.wait(_BEAT_S):
            if gateway.is_gone:
                _log.error("the JVM has ended, see the lines before; the gateway starts again")
                return 1
            write_heartbeat(settings, "gateway", states=gateway.states)
    finally:
        gateway.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
