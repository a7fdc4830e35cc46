"""From MQTT to Kafka: what Kafka has stored is acknowledged; what it has not waits, with its application's others.

An application whose topic is missing costs the others nothing until `MQTT_IN_FLIGHT` of its messages are held.
"""

import logging
import time
from collections.abc import Sequence

from deeplambda.adapters.kafka import Publisher
from deeplambda.records import topics
from deeplambda.service.heartbeat import FAILING
from speed_layer.mqtt_bridge.records import events_topic, record_of
from speed_layer.mqtt_bridge.session import Arrived, Session

_AGAIN_S = 5.0
"""How long what was not stored waits: a publisher takes as long to say that a topic is missing."""
_LOG = logging.getLogger(__name__)


class Forwarder:
    """forwarded: how many messages Kafka has stored. held: those with QoS 1 that it has not."""

    def __init__(self, publisher: Publisher, session: Session) -> None:
        self._publisher, self._session = publisher, session
        self._failing: dict[str, str] = {}
        self._again_at_s, self._lost = 0.0, 0
        self._late: list[Arrived] = []
        self.forwarded = 0
        self.held: list[Arrived] = []

    @property
    def room(self) -> int:
        """How many messages it can take."""
        return topics.MQTT_IN_FLIGHT - len(self.held)

    def state(self, application: str) -> str:
        """As a heartbeat has it."""
        why = self._failing.get(topics.events(application))
        return "running" if why is None else f"{FAILING}: {why}"

    def forward(self, arrived: Sequence[Arrived]) -> None:
        """Send what has arrived, and what is held when it is time; what is for a topic that fails is held till then."""
        waiting = [each for each in arrived if events_topic(each.message.topic) in self._failing]
        self._send([each for each in arrived if events_topic(each.message.topic) not in self._failing])
        if time.monotonic() < self._again_at_s:
            for each in waiting:
                self._hold(each)
            return
        held, self.held = self.held, []
        self._send([each for each in (*held, *waiting) if not self._session.sends_again(each)], timeout_s=_AGAIN_S)
        if time.monotonic() >= self._again_at_s:
            self._failing.clear()  # nothing failed, or nothing was there to try

    def _send(self, messages: Sequence[Arrived], timeout_s: float = 30) -> None:
        records = [record_of(each.message.topic, bytes(each.message.payload)) for each in messages]
        became = self._publisher.send_each(records, timeout_s)
        stored, failed = self._late, dict[str, str]()
        for message, record, sent in zip(messages, records, became, strict=True):
            if sent.error is None:
                stored.append(message)
                self.forwarded += 1
            else:
                failed[record.topic] = sent.error
                self._hold(message)
        # A broker gives a number again after 65,535 others, whatever is held: it would take this for the one before.
        of_held = {_number(each) for each in self.held}
        self._late = [each for each in stored if _number(each) in of_held]
        self._session.acknowledge([each for each in stored if _number(each) not in of_held])
        self._tell({record.topic for record in records}, failed)

    def _tell(self, sent: set[str], failed: dict[str, str]) -> None:
        for topic in sorted(failed.keys() - self._failing.keys()):
            _LOG.warning("events for %s stay with the MQTT broker: %s", topic, failed[topic])
        for topic in sorted(self._failing.keys() & sent - failed.keys()):
            _LOG.info("events for %s are forwarded again", topic)
        self._failing = {topic: why for topic, why in self._failing.items() if topic not in sent} | failed
        if failed:
            self._again_at_s = time.monotonic() + _AGAIN_S
        if self._lost:
            _LOG.warning("%d messages with QoS 0 are lost", self._lost)
            self._lost = 0

    def _hold(self, arrived: Arrived) -> None:
        if arrived.message.qos:
            self.held.append(arrived)
        else:
            self._lost += 1


def _number(arrived: Arrived) -> tuple[int, int]:
    """What tells messages with QoS 1 apart that wait for an acknowledgement."""
    return arrived.connection, arrived.message.mid
