"""Forward events from MQTT to Kafka: `python -m speed_layer.mqtt_bridge`."""

import logging
import sys

from deeplambda.config import load_settings
from deeplambda.errors import DeepLambdaError
from deeplambda.service.logs import log_to_stderr
from deeplambda.service.loops import stop_on_signals
from speed_layer.mqtt_bridge.bridge import run
from speed_layer.mqtt_bridge.session import Session

_LOG = logging.getLogger("speed_layer.mqtt_bridge")


def main() -> None:
    """Run until SIGTERM."""
    log_to_stderr()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # `run` logs that Kafka is away
    settings, stop = load_settings(), stop_on_signals()
    session = Session(settings)
    session.start()
    try:
        run(settings, session, stop)
    finally:
        session.close()
    _LOG.info("stopped")


if __name__ == "__main__":
    try:
        main()
    except DeepLambdaError as exc:
        sys.exit(str(exc))
