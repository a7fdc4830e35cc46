"""The outbox, relayed: what a transaction in MySQL said is published on Kafka a moment later."""

import threading

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.config import Settings
from deeplambda.service.loops import Pulse
from deeplambda.state import outbox

_PAUSE_S = 0.2


def run(settings: Settings, pulse: Pulse, stop: threading.Event) -> None:
    """Relay until told to stop. Raises: NotReady; call it again."""
    # without gap locks, so that nobody who writes to the outbox waits for the broker
    engine = mysql.engine(settings, "views").execution_options(isolation_level="READ COMMITTED")
    with Publisher(settings) as publisher:
        relayed = 0
        while not stop.is_set():
            sent = outbox.relay(engine, publisher)
            relayed += sent
            pulse.well(relayed=relayed)
            if not sent:
                stop.wait(_PAUSE_S)
