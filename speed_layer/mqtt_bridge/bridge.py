"""Forward the events that devices publish over MQTT to Kafka.

1. Take the messages that have arrived.
2. Send each to Kafka, keyed by its event id, and wait until the broker has stored them.
3. Only then acknowledge those to the MQTT broker that are. The others are sent to Kafka again. After a crash in between
   messages come again; every reader recognises an event by its id.
"""

import logging
import threading
import time

from deeplambda.adapters.kafka import Publisher
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.service.heartbeat import write_heartbeat
from speed_layer.mqtt_bridge.forwarding import Forwarder
from speed_layer.mqtt_bridge.session import Session

_TURN_S = 1.0
_BEAT_S = 5.0
_LOG = logging.getLogger("speed_layer.mqtt_bridge")


def as_producer(settings: Settings) -> Settings:
    """`settings` with the Kafka account `producer`, which may only write events."""
    return settings.model_copy(update={"kafka_user": "producer", "kafka_password": settings.kafka_producer_password})


def run(settings: Settings, session: Session, stop: threading.Event) -> None:
    """Forward until `stop` is set."""
    publisher, last_beat_s = _publisher(settings, stop), 0.0
    if publisher is None:
        return
    forwarder = Forwarder(publisher, session)
    while not stop.is_set():
        if forwarder.room:
            forwarder.forward(session.take(_TURN_S, forwarder.room))
        else:
            stop.wait(_TURN_S)
            forwarder.forward([])
        if session.subscribed and time.monotonic() - last_beat_s > _BEAT_S:
            last_beat_s = time.monotonic()
            states = {name: forwarder.state(name) for name in settings.applications}
            write_heartbeat(settings, "mqtt-bridge", states, events=forwarder.forwarded)


def _publisher(settings: Settings, stop: threading.Event) -> Publisher | None:
    """Connected to Kafka; None when told to stop before it answers."""
    waits = False
    while not stop.is_set():
        try:
            return Publisher(as_producer(settings), reports=True)
        except NotReady as exc:
            if not waits:
                _LOG.warning("events stay with the MQTT broker until Kafka answers: %s", exc)
            waits = True
            stop.wait(_TURN_S)
    return None
