"""Kafka records of MQTT messages: each is an event, keyed by its id, which the stream checks as it does every other."""

from typing import NamedTuple

from deeplambda.records import topics
from deeplambda.records.decoding import readable_id

_ID_LIMIT = 128
"""Characters of an event's id."""
VALUE_LIMIT_BYTES = topics.RECORD_LIMIT_BYTES - 4 * _ID_LIMIT - 1024
"""What Kafka takes beside a key, and what it adds itself."""


class Record(NamedTuple):
    """key: None where no id can be read; the stream makes such an event a dead letter."""

    topic: str
    key: bytes | None
    value: bytes


def record_of(topic: str, payload: bytes) -> Record:
    """The Kafka record for a message on an MQTT topic that `topics.mqtt_events` matches.

    A payload that is too large for Kafka is cut to `VALUE_LIMIT_BYTES`; the stream makes it a dead letter, as it does
    an event whose id is too long to be one: it has no key.
    """
    value = payload[:VALUE_LIMIT_BYTES]
    found = readable_id(value)
    key = found.encode() if found is not None and len(found) <= _ID_LIMIT else None
    return Record(events_topic(topic), key, value)


def events_topic(topic: str) -> str:
    """Kafka's topic for the events on an MQTT topic."""
    return topics.events(topic.partition("/")[0])
