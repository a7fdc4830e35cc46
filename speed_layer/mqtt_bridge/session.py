"""The MQTT session: it outlasts connections, and the broker keeps its messages until they are acknowledged.

A broker sends no more than `MQTT_IN_FLIGHT` messages without an acknowledgement, so a Kafka that is slow or away slows
the broker down. After a connection was lost, the broker sends what was not acknowledged again, under the same packet
ids. An acknowledgement belongs to the connection that its message came by: late, it could meet another message.
It is of MQTT 3.1.1, whose messages have no properties: those of MQTT 5, which the broker leaves out, are of no use
here, and paho ends the connection for texts in them that the broker lets through, so that none would come past them.

Source: MQTT 3.1.1, sections 3.1.2.4 (clean session), 3.3.1.3 (retain) and 4.4 (message delivery retry).
"""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Any, NamedTuple

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from deeplambda.config import Settings, host_of, port_of
from deeplambda.records import topics

CLIENT_ID = "deeplambda-bridge"
USER = "bridge"

_KEEP_ALIVE_S = 30
_RECONNECT_S = 5
_QOS_0, _QOS_0_BYTES = 3 * topics.MQTT_IN_FLIGHT, 32 * 1024 * 1024
"""How many messages may wait, and of how many bytes, for one with QoS 0 to wait as well: nothing else bounds those."""
_WARN_EVERY_S = 60
_LOG = logging.getLogger(__name__)


class Arrived(NamedTuple):
    """A message, and the connection that it came by."""

    connection: int
    message: MQTTMessage


class Session:
    """Connects and reconnects by itself until it is closed; `subscribed` is True while the broker delivers messages.

    The `_on_…` methods are paho's callbacks: paho calls them on the thread that `start` begins.
    """

    def __init__(self, settings: Settings) -> None:
        self._address = settings.mqtt_address
        self._filters = [topics.mqtt_events(application) for application in settings.applications]
        self._arrived: Queue[Arrived] = Queue(_QOS_0 + topics.MQTT_IN_FLIGHT)
        self._waiting_bytes = 0
        self._passed_over, self._warned_s = 0, -float(_WARN_EVERY_S)
        self._lock = threading.Lock()
        self._connection = self._began = self._resumed = 0
        self._has_subscribed = False
        self._closing = threading.Event()
        self.subscribed = False
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            CLIENT_ID,
            clean_session=False,
            protocol=MQTTProtocolVersion.MQTTv311,
            manual_ack=True,
        )
        self._client.username_pw_set(USER, settings.mqtt_bridge_password.get_secret_value())
        self._client.reconnect_delay_set(min_delay=1, max_delay=_RECONNECT_S)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    def start(self) -> None:
        """Begin to connect, on a thread of its own."""
        self._client.connect_async(host_of(self._address), port_of(self._address), _KEEP_ALIVE_S)
        self._client.loop_start()

    def close(self) -> None:
        """Send the acknowledgements given so far and disconnect; the broker keeps the session."""
        self._closing.set()
        self._client.disconnect()
        self._client.loop_stop()

    def take(self, timeout_s: float, at_most: int = topics.MQTT_IN_FLIGHT) -> list[Arrived]:
        """The messages that have arrived, in their order; waits for the first."""
        batch: list[Arrived] = []
        with suppress(Empty):
            batch.append(self._next(timeout_s))
            while len(batch) < at_most:
                batch.append(self._next(0))
        return batch

    def acknowledge(self, batch: Sequence[Arrived]) -> None:
        """Acknowledge `batch`, so that the broker drops it; it sends messages of an earlier connection again."""
        with self._lock:
            for arrived in batch:
                if arrived.connection == self._connection:
                    self._client.ack(arrived.message.mid, arrived.message.qos)

    def sends_again(self, arrived: Arrived) -> bool:
        """Whether the broker sends the message again, or has done so: its session went on after its connection."""
        return arrived.message.qos > 0 and self._began <= arrived.connection < self._resumed

    def _on_connect(
        self, client: Client, _: Any, flags: ConnectFlags, reason: ReasonCode, __: Properties | None
    ) -> None:
        if reason.is_failure:
            _LOG.error("the MQTT broker at %s refuses the account %r: %s", self._address, USER, reason)
            return
        self._next_connection()
        if flags.session_present:
            self._resumed = self._connection
            self._drop_queued()  # the broker sends all of them again
        else:
            self._began = self._connection
        if flags.session_present and self._has_subscribed:  # to subscribe anew would have all retained messages sent
            self.subscribed = True
        else:
            client.subscribe([(each, 1) for each in self._filters])

    def _on_subscribe(self, _: Client, __: Any, ___: int, reasons: list[ReasonCode], ____: Properties | None) -> None:
        refused = {name: str(reason) for name, reason in zip(self._filters, reasons, strict=True) if reason.is_failure}
        if refused:
            _LOG.error("the MQTT broker at %s refuses subscriptions: %s", self._address, refused)
            return
        self.subscribed = self._has_subscribed = True
        _LOG.info("follows %s at %s", ", ".join(self._filters), self._address)

    def _on_disconnect(
        self, _: Client, __: Any, ___: DisconnectFlags, reason: ReasonCode, ____: Properties | None
    ) -> None:
        self.subscribed = False
        self._next_connection()
        if not self._closing.is_set():
            _LOG.warning("lost the MQTT broker at %s: %s", self._address, reason)

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        if message.qos == 0 and self._is_full():
            self._pass_over()
            return
        arrived = Arrived(self._connection, message)
        while not self._closing.is_set():
            try:
                self._arrived.put(arrived, timeout=1)
            except Full:
                continue
            with self._lock:
                self._waiting_bytes += len(message.payload)
            return

    def _next(self, timeout_s: float) -> Arrived:
        """The next message. Raises: Empty."""
        arrived = self._arrived.get(timeout=timeout_s) if timeout_s else self._arrived.get_nowait()
        with self._lock:
            self._waiting_bytes -= len(arrived.message.payload)
        return arrived

    def _is_full(self) -> bool:
        return self._arrived.qsize() >= _QOS_0 or self._waiting_bytes >= _QOS_0_BYTES

    def _pass_over(self) -> None:
        self._passed_over += 1
        if time.monotonic() - self._warned_s >= _WARN_EVERY_S:
            _LOG.warning("messages with QoS 0 come faster than Kafka takes them: %d are lost", self._passed_over)
            self._passed_over, self._warned_s = 0, time.monotonic()

    def _next_connection(self) -> None:
        with self._lock:
            self._connection += 1

    def _drop_queued(self) -> None:
        with suppress(Empty):
            while True:
                self._next(0)
