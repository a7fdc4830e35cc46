import pytest
from pydantic import SecretStr

from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.records.decoding import Reason, RefusedEvent, decode_event
from examples.digits.application import Digits
from speed_layer.mqtt_bridge.bridge import as_producer
from speed_layer.mqtt_bridge.records import VALUE_LIMIT_BYTES, record_of

TOPIC = "digits/events/camera-7"


def test_an_event_is_keyed_by_its_id_and_goes_on_as_it_came() -> None:
    payload = b'{"event_id": "a", "occurred_at": "2026-01-02T03:04:05Z", "more": 1}'
    assert record_of(TOPIC, payload) == ("digits.events", b"a", payload)


def test_a_cloud_event_is_keyed_by_its_own_id() -> None:
    payload = b'{"specversion": "1.0", "id": "a", "data": {"event_id": "b"}}'
    assert record_of(TOPIC, payload).key == b"a"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"no JSON",
        b'"a"',
        b'{"event_id": 7}',
        b'{"event_id": ""}',
        b'{"event_id": "\\ud800"}',
        b'{"id": "a"}',
        b"[" * 10_000,
        b'{"event_id": "' + b"a" * 129 + b'", "occurred_at": "2026-01-02T03:04:05Z"}',
    ],
)
def test_what_has_no_readable_id_goes_on_without_a_key_and_the_stream_refuses_it(payload: bytes) -> None:
    assert record_of(TOPIC, payload) == ("digits.events", None, payload)
    with pytest.raises(RefusedEvent):
        decode_event(Digits.event, payload, limit_bytes=1_000_000)


def test_of_what_kafka_would_not_take_the_beginning_becomes_a_dead_letter() -> None:
    record = record_of(TOPIC, b'{"event_id": "a", "image": "' + b"A" * topics.RECORD_LIMIT_BYTES + b'"}')
    assert (record.key, len(record.value)) == (None, VALUE_LIMIT_BYTES)
    with pytest.raises(RefusedEvent) as refused:
        decode_event(Digits.event, record.value, limit_bytes=1_000_000)
    assert refused.value.reason == Reason.TOO_LARGE


def test_whatever_the_limit_allows_reaches_kafka_whole_with_the_longest_key() -> None:
    (largest,) = (each.le for each in Settings.model_fields["event_limit_bytes"].metadata if hasattr(each, "le"))
    event_id = "\N{GRINNING FACE}" * 128
    event = b'{"event_id": "' + event_id.encode() + b'"}'
    record = record_of(TOPIC, event.ljust(largest))
    assert (record.key, len(record.value)) == (event_id.encode(), largest)
    assert len(event_id.encode()) + VALUE_LIMIT_BYTES + 1024 <= topics.RECORD_LIMIT_BYTES


def test_each_application_has_topics_of_its_own() -> None:
    assert topics.mqtt_events("digits") == "digits/events/#"
    assert record_of("fraud/events", b"{}").topic == "fraud.events"


def test_the_bridge_writes_as_the_producer() -> None:
    given = Settings(data_dir="/nowhere", kafka_password=SecretStr("all"), kafka_producer_password=SecretStr("little"))
    used = as_producer(given)
    assert (used.kafka_user, used.kafka_password.get_secret_value()) == ("producer", "little")
