"""The MQTT session: it outlasts connections, and the broker keeps its messages until they are acknowledged.

A broker sends no more than `MQTT_IN_FLIGHT` messages without an acknowledgement, so a Kafka that is slow or away slows
the broker down. After a connection was lost, the broker sends what was not acknowledged again, under the same packet
ids. An acknowledgement belongs to the connection that its message came by: late, it could meet another message.

Source: MQTT 5.0, sections 3.1.2.11 (session expiry, receive maximum) and 4.4 (message delivery retry).
"""

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Any, NamedTuple

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from deeplambda.config import Settings, host_of, port_of
from deeplambda.records import topics

CLIENT_ID = "deeplambda-bridge"
USER = "bridge"
SESSION_EXPIRY_S = 7 * 24 * 3600
"""As long as Kafka keeps an event."""

_KEEP_ALIVE_S = 30
_RECONNECT_S = 5
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
        self._arrived: Queue[Arrived] = Queue(4 * topics.MQTT_IN_FLIGHT)  # full only of messages with QoS 0
        self._lock = threading.Lock()
        self._connection = 0
        self._closing = threading.Event()
        self.subscribed = False
        self._client = Client(
            CallbackAPIVersion.VERSION2, CLIENT_ID, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True
        )
        self._client.username_pw_set(USER, settings.mqtt_bridge_password.get_secret_value())
        self._client.reconnect_delay_set(min_delay=1, max_delay=_RECONNECT_S)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    def start(self) -> None:
        """Begin to connect, on a thread of its own."""
        wanted = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        wanted.SessionExpiryInterval = SESSION_EXPIRY_S
        wanted.ReceiveMaximum = topics.MQTT_IN_FLIGHT
        self._client.connect_async(
            host_of(self._address), port_of(self._address), _KEEP_ALIVE_S, clean_start=False, properties=wanted
        )
        self._client.loop_start()

    def close(self) -> None:
        """Send the acknowledgements given so far and disconnect; the broker keeps the session."""
        self._closing.set()
        self._client.disconnect()
        self._client.loop_stop()

    def take(self, timeout_s: float) -> list[Arrived]:
        """The messages that have arrived, in their order; waits for the first."""
        batch: list[Arrived] = []
        with suppress(Empty):
            batch.append(self._arrived.get(timeout=timeout_s))
            while len(batch) < topics.MQTT_IN_FLIGHT:
                batch.append(self._arrived.get_nowait())
        return batch

    def acknowledge(self, batch: Sequence[Arrived]) -> None:
        """Acknowledge `batch`, so that the broker drops it; it sends messages of an earlier connection again."""
        with self._lock:
            for arrived in batch:
                if arrived.connection == self._connection:
                    self._client.ack(arrived.message.mid, arrived.message.qos)

    def _on_connect(
        self, client: Client, _: Any, flags: ConnectFlags, reason: ReasonCode, __: Properties | None
    ) -> None:
        if reason.is_failure:
            _LOG.error("the MQTT broker at %s refuses the account %r: %s", self._address, USER, reason)
            return
        self._next_connection()
        if flags.session_present:
            self._drop_queued()  # the broker sends all of them again
        client.subscribe(
            [
                (each, SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB))
                for each in self._filters
            ]
        )

    def _on_subscribe(self, _: Client, __: Any, ___: int, reasons: list[ReasonCode], ____: Properties | None) -> None:
        refused = {name: str(reason) for name, reason in zip(self._filters, reasons, strict=True) if reason.is_failure}
        if refused:
            _LOG.error("the MQTT broker at %s refuses subscriptions: %s", self._address, refused)
            return
        self.subscribed = True
        _LOG.info("follows %s at %s", ", ".join(self._filters), self._address)

    def _on_disconnect(
        self, _: Client, __: Any, ___: DisconnectFlags, reason: ReasonCode, ____: Properties | None
    ) -> None:
        self.subscribed = False
        self._next_connection()
        if not self._closing.is_set():
            _LOG.warning("lost the MQTT broker at %s: %s", self._address, reason)

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        arrived = Arrived(self._connection, message)
        while not self._closing.is_set():
            try:
                self._arrived.put(arrived, timeout=1)
            except Full:
                continue
            return

    def _next_connection(self) -> None:
        with self._lock:
            self._connection += 1

    def _drop_queued(self) -> None:
        with suppress(Empty):
            while True:
                self._arrived.get_nowait()
