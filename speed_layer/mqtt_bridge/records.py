"""Kafka records of MQTT messages: each is an event, keyed by its id, which the stream checks as it does every other."""

from typing import NamedTuple

from deeplambda.records import topics
from deeplambda.records.decoding import readable_id

VALUE_LIMIT_BYTES = topics.RECORD_LIMIT_BYTES // 2


class Record(NamedTuple):
    """key: None where no id can be read; the stream makes such an event a dead letter."""

    topic: str
    key: str | None
    value: bytes


def record_of(topic: str, payload: bytes) -> Record:
    """The Kafka record for a message on an MQTT topic that `topics.mqtt_events` matches.

    A payload that is too large for Kafka is cut to `VALUE_LIMIT_BYTES`; the stream makes it a dead letter.
    """
    application = topic.partition("/")[0]
    value = payload[:VALUE_LIMIT_BYTES]
    return Record(topics.events(application), readable_id(value), value)
