"""Devices: an event that is published over MQTT is predicted, none is lost on the way, and strangers stay out."""

import uuid
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic_core import to_json

from deeplambda.config import Settings
from tests.compose.conftest import UNREACHABLE, Compose
from tests.traffic import digit_event, eventually, realtime_ids

PROFILE = ("--profile", "mqtt")
SERVICES = ("mqtt", "mqtt-bridge")
TOPIC = "digits/events/camera-7"


@pytest.fixture(scope="module")
def devices(compose: Compose, demo: str) -> Iterator[str]:
    """The password of the account `producer`, once broker and bridge are up."""
    compose(*PROFILE, "up", "--detach", "--wait", "--wait-timeout", "300", *SERVICES)
    yield compose.secret("mqtt_producer_password")
    compose(*PROFILE, "rm", "--stop", "--force", *SERVICES)


class Device:
    """An MQTT client of the account `producer`; `answers` has what the broker said of each message."""

    def __init__(self, compose: Compose, password: str) -> None:
        self.login: list[str] = []
        self.answers: dict[int, str] = {}
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set("producer", password)
        self._client.on_connect = lambda _, __, ___, reason, ____: self.login.append(str(reason))
        self._client.on_publish = lambda _, __, number, reason, ___: self.answers.update({number: str(reason)})
        self._client.connect("127.0.0.1", int(compose.environment["DEEPLAMBDA_MQTT_PORT"]))
        self._client.loop_start()
        assert eventually(lambda: self.login, timeout_s=20)

    def publish(self, topic: str, payload: bytes, content_type: str | None = None) -> int:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if content_type is not None:
            properties.ContentType = content_type
        return self._client.publish(topic, payload, qos=1, properties=properties).mid

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def device(compose: Compose, devices: str) -> Iterator[Device]:
    made = Device(compose, devices)
    yield made
    made.close()


def publish_digits(device: Device, images_NHW: NDArray[np.uint8]) -> list[str]:
    """Publish one event for each image; returns their ids once the broker has them."""
    run = f"mqtt-{uuid.uuid4().hex[:8]}"
    ids = [f"{run}-{n:05}" for n in range(len(images_NHW))]
    numbers = {
        device.publish(TOPIC, to_json(digit_event(event_id, image)))
        for event_id, image in zip(ids, images_NHW, strict=True)
    }
    assert eventually(lambda: numbers <= device.answers.keys(), timeout_s=60)
    return ids


def predicted(client: Settings, ids: list[str]) -> bool:
    """Whether each has its one row in MySQL, within two minutes."""
    run = ids[0].rpartition("-")[0]
    return eventually(lambda: realtime_ids(client, run) == ids, timeout_s=120, every_s=1)


def dead_letters(compose: Compose) -> int:
    """How many there are, as the operator may count them."""
    program = (
        "from deeplambda.adapters.kafka import end_offsets; from deeplambda.config import load_settings; "
        "print('letters', sum(end_offsets(load_settings(), 'digits.dead-letters').values()))"
    )
    said = compose("run", "--rm", "--no-deps", "-T", "operator", "python", "-c", program)
    return int(said.rpartition("letters ")[2])


def test_events_over_mqtt_are_predicted(device: Device, client: Settings, test_images: NDArray[np.uint8]) -> None:
    assert predicted(client, publish_digits(device, test_images[:500]))


def test_what_is_published_while_the_bridge_is_away_arrives_when_it_is_back(
    compose: Compose, device: Device, client: Settings, test_images: NDArray[np.uint8]
) -> None:
    compose(*PROFILE, "stop", "mqtt-bridge")
    ids = publish_digits(device, test_images[:500])
    compose(*PROFILE, "up", "--detach", "--wait", *SERVICES)
    assert predicted(client, ids)


def test_a_killed_bridge_loses_and_doubles_nothing(
    compose: Compose, device: Device, client: Settings, test_images: NDArray[np.uint8]
) -> None:
    before = publish_digits(device, test_images[:500])
    compose.kill("mqtt-bridge")
    after = publish_digits(device, test_images[500:1000])
    assert predicted(client, before)
    assert predicted(client, after)


def test_the_broker_keeps_what_waits_over_its_own_restart(
    compose: Compose, device: Device, client: Settings, test_images: NDArray[np.uint8]
) -> None:
    compose(*PROFILE, "stop", "mqtt-bridge")
    ids = publish_digits(device, test_images[:500])
    compose(*PROFILE, "restart", "mqtt")
    compose(*PROFILE, "up", "--detach", "--wait", *SERVICES)
    assert predicted(client, ids)


def test_what_has_no_readable_id_becomes_a_dead_letter(compose: Compose, device: Device) -> None:
    before = dead_letters(compose)
    device.publish(TOPIC, b"\xff\xfe no JSON")
    device.publish(TOPIC, b'{"occurred_at": "2026-01-02T03:04:05Z"}')
    assert eventually(lambda: dead_letters(compose) == before + 2, timeout_s=120, every_s=5)


def test_a_text_that_paho_does_not_read_holds_up_no_event(
    device: Device, client: Settings, test_images: NDArray[np.uint8]
) -> None:
    device.publish(TOPIC, b"{}", content_type="\ufeffapplication/json")
    assert predicted(client, publish_digits(device, test_images[:50]))


def test_a_wrong_password_is_refused(compose: Compose, devices: str) -> None:
    stranger = Device(compose, "wrong")
    stranger.close()
    assert set(stranger.login) == {"Not authorized"}


def test_a_device_publishes_events_and_nothing_else(device: Device) -> None:
    number = device.publish("digits/commands", b"{}")
    assert eventually(lambda: number in device.answers)
    assert device.answers[number] == "Not authorized"


def test_the_bridge_reaches_neither_mysql_nor_s3(compose: Compose, devices: str) -> None:
    knock = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
    compose(*PROFILE, "exec", "-T", "mqtt-bridge", "python", "-c", knock, "kafka", "9092")
    for host, port in (("mysql", "3306"), ("s3", "8333")):
        said = compose(*PROFILE, "exec", "-T", "mqtt-bridge", "python", "-c", knock, host, port, check=False)
        assert UNREACHABLE.search(said), said
