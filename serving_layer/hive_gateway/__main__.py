"""Run the gateway: `python -m serving_layer.hive_gateway`."""

import logging
import signal
import sys
import threading

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from deeplambda.config import load_settings
from deeplambda.errors import DeepLambdaError
from deeplambda.service.logs import log_to_stderr
from serving_layer.hive_gateway.gateway import Gateway

_POLL_S = 0.5
_log = logging.getLogger(__name__)


def main() -> int:
    """Serve until SIGTERM or SIGINT, replacing union views when horizons move; returns the exit status."""
    log_to_stderr()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        gateway = Gateway(load_settings())
    except (DeepLambdaError, PySparkException) as exc:
        _log.error("the gateway cannot start: %s", str(exc).splitlines()[0])
        return 1
    except Py4JJavaError as exc:
        _log.error("the gateway cannot start: %s", exc.java_exception)
        return 1
    _log.info("ready")
    try:
        while not stopping.wait(_POLL_S):
            gateway.follow()
    finally:
        gateway.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
