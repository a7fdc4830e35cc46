"""The outbox relay: publishes on Kafka the records that transactions in MySQL have put into the outbox."""

import threading

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.config import Settings
from deeplambda.service.loops import LoopStatus
from deeplambda.state import outbox

_PAUSE_S = 0.2


def run(settings: Settings, status: LoopStatus, stop: threading.Event) -> None:
    """Relay until `stop` is set: the `work` of a `Loop`, which calls it again after NotReady."""
    # without gap locks, so that nobody who writes to the outbox waits for the broker
    engine = mysql.engine(settings, "views").execution_options(isolation_level="READ COMMITTED")
    with Publisher(settings) as publisher:
        relayed = 0
        while not stop.is_set():
            sent = outbox.relay(engine, publisher)
            relayed += sent
            status.working(relayed=relayed)
            if not sent:
                stop.wait(_PAUSE_S)
