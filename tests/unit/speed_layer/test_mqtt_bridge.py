"""The bridge between a broker of the test's own and librdkafka's own mock of Kafka, over sockets."""

import logging
import threading
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from deeplambda.adapters.kafka import Publisher
from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.service.heartbeat import last_states
from speed_layer.mqtt_bridge import session as session_module
from speed_layer.mqtt_bridge.bridge import run
from speed_layer.mqtt_bridge.forwarding import Forwarder
from speed_layer.mqtt_bridge.session import Arrived, Session
from tests.traffic import eventually
from tests.unit.speed_layer.own_mqtt_broker import Broker

TOPIC = "digits/events/camera-7"


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as made:
        yield made


@pytest.fixture
def session(broker: Broker, settings: Settings) -> Iterator[Session]:
    made = Session(settings.model_copy(update={"mqtt_address": broker.address}))
    made.start()
    yield made
    made.close()


@pytest.fixture
def with_kafka(settings: Settings) -> Iterator[Settings]:
    kafka = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    (node,) = kafka.list_topics(timeout=20).brokers.values()
    yield settings.model_copy(update={"kafka_bootstrap": f"{node.host}:{node.port}"})
    kafka.flush()


@pytest.fixture
def publisher(with_kafka: Settings, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """One that takes no records of more than 2,000 bytes."""
    monkeypatch.setattr(topics, "RECORD_LIMIT_BYTES", 2000)
    return Publisher(with_kafka, reports=True)


def payloads(arrived: list[Arrived]) -> list[bytes]:
    return [bytes(each.message.payload) for each in arrived]


def test_the_session_outlasts_connections_and_has_no_properties(session: Session, broker: Broker) -> None:
    assert eventually(lambda: session.subscribed)
    (header,) = broker.connects
    level, flags = header[6], header[7]
    assert header[:6] == b"\x00\x04MQTT"
    assert level == 4, "MQTT 3.1.1"
    assert not flags & 2, "no clean session"


@pytest.mark.slow
def test_retained_events_are_asked_for_once_and_none_that_comes_again_is_dropped(
    session: Session, broker: Broker
) -> None:
    broker.publish(TOPIC, b"kept", 1, retain=True)
    assert payloads(session.take(20)) == [b"kept"]
    broker.hang_up()
    broker.publish(TOPIC, b"kept", 1, retain=True)  # it was not acknowledged
    assert payloads(session.take(20)) == [b"kept"]
    assert broker.subscriptions == 1
    assert session.subscribed


@pytest.mark.slow
def test_what_the_broker_sends_again_is_known(session: Session, broker: Broker) -> None:
    broker.publish(TOPIC, b"event", 1)
    broker.publish(TOPIC, b"at most once")
    arrived = session.take(20) + session.take(1)
    assert [session.sends_again(each) for each in arrived] == [False, False]
    broker.hang_up()
    assert eventually(lambda: [session.sends_again(each) for each in arrived] == [True, False])

    broker.hang_up(forget=True)
    assert eventually(lambda: broker.subscriptions == 2)
    broker.hang_up()
    assert eventually(lambda: session.subscribed and len(broker.connects) == 4)
    assert not any(session.sends_again(each) for each in arrived), "of a session that was forgotten"


@pytest.mark.parametrize(("many", "size_bytes"), [(400, 1), (12, 4 * 1024 * 1024)])
def test_messages_with_qos_0_that_nobody_takes_are_bounded_and_the_others_pass_them(
    session: Session, broker: Broker, caplog: pytest.LogCaptureFixture, many: int, size_bytes: int
) -> None:
    for _ in range(many):
        broker.publish(TOPIC, bytes(size_bytes))
    broker.publish(TOPIC, b"event", 1)
    assert eventually(lambda: session._arrived.queue and session._arrived.queue[-1].message.qos == 1)
    waiting = []
    while some := session.take(0.01):
        waiting += some
    assert 1 < len(waiting) <= many
    assert sum(map(len, payloads(waiting))) <= session_module._QOS_0_BYTES + size_bytes
    assert "QoS 0" in caplog.text


@pytest.mark.slow
def test_what_devices_publish_is_acknowledged_once_kafka_has_it(
    session: Session, broker: Broker, with_kafka: Settings
) -> None:
    stop = threading.Event()
    bridge = threading.Thread(target=run, args=(with_kafka, session, stop))
    bridge.start()
    try:
        for number in range(1, 101):
            broker.publish(TOPIC, b"{}", number)
        assert eventually(lambda: sorted(broker.acknowledged) == list(range(1, 101)))
        assert eventually(lambda: last_states(with_kafka, "mqtt-bridge")) == {"digits": "running"}
    finally:
        stop.set()
        bridge.join()


@pytest.mark.slow
def test_what_kafka_refuses_is_held_and_the_rest_is_acknowledged(
    session: Session, broker: Broker, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    forwarder = Forwarder(publisher, session)
    for number, (topic, payload) in enumerate([(TOPIC, bytes(3000)), (TOPIC, b"{}"), ("fraud/events/a", b"{}")], 1):
        broker.publish(topic, payload, number)
    while forwarder.forwarded < 2:
        forwarder.forward(session.take(20))
    assert payloads(forwarder.held) == [bytes(3000)]
    assert "digits.events stay with the MQTT broker: MSG_SIZE_TOO_LARGE" in caplog.text
    assert forwarder.state("digits").startswith("failing: MSG_SIZE_TOO_LARGE")
    assert forwarder.state("fraud") == "running"

    broker.publish(TOPIC, b"after it", 4)
    broker.publish("fraud/events/a", b"of another", 5)
    while forwarder.forwarded < 3:
        forwarder.forward(session.take(20))
    assert eventually(lambda: {2, 3, 5} <= set(broker.acknowledged))
    assert 1 not in broker.acknowledged

    forwarder._again_at_s = 0
    forwarder.forward(session.take(1))
    assert payloads(forwarder.held) == [bytes(3000)], "tried again, and alone"
    assert eventually(lambda: {2, 3, 4, 5} == set(broker.acknowledged))


@pytest.mark.slow
def test_what_is_held_when_a_connection_is_lost_is_not_sent_beside_what_the_broker_sends_again(
    session: Session, broker: Broker, publisher: Publisher
) -> None:
    forwarder = Forwarder(publisher, session)
    broker.publish(TOPIC, bytes(3000), 1)
    forwarder.forward(session.take(20))
    assert forwarder.room == topics.MQTT_IN_FLIGHT - 1
    (held,) = forwarder.held
    broker.hang_up()
    assert eventually(lambda: session.sends_again(held))
    forwarder._again_at_s = 0
    forwarder.forward([])
    assert not forwarder.held


@pytest.mark.slow
def test_a_number_that_a_held_message_has_is_not_acknowledged_for_another(
    session: Session, broker: Broker, publisher: Publisher
) -> None:
    forwarder = Forwarder(publisher, session)
    broker.publish(TOPIC, bytes(3000), 1)
    broker.publish("fraud/events/a", b"{}", 1)  # as after 65,535 others
    while forwarder.forwarded < 1:
        forwarder.forward(session.take(20))
    broker.publish("fraud/events/a", b"{}", 2)
    forwarder.forward(session.take(20))
    assert eventually(lambda: broker.acknowledged == [2])
    (held,) = forwarder.held
    held.message.payload = b"{}"  # as if Kafka took it now
    forwarder._again_at_s = 0
    forwarder.forward([])
    assert eventually(lambda: broker.acknowledged == [2, 1, 1])
    assert forwarder.state("digits") == "running"
