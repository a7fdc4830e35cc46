"""What a publisher promises: flushed is stored, and what is not is said."""

import uuid

import pytest

from deeplambda.adapters.kafka import Publisher, end_offsets
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.records import topics
from tests.traffic import eventually, new_topic


@pytest.fixture(scope="module")
def topic(stack: Settings) -> str:
    return new_topic(stack, 2)


def stored(settings: Settings, topic: str) -> int:
    return sum(end_offsets(settings, topic).values())


def test_what_is_flushed_is_stored(stack: Settings, topic: str) -> None:
    with Publisher(stack) as publisher:
        before = stored(stack, topic)
        for n in range(1_000):
            publisher.send(topic, str(n), {"n": n})
        publisher.flush()
        assert stored(stack, topic) - before >= 1_000


def test_a_record_for_no_topic_is_said_and_the_next_ones_are_stored(stack: Settings, topic: str) -> None:
    with Publisher(stack) as publisher:
        publisher.send(f"no-{uuid.uuid4().hex[:8]}", "key", {})
        with pytest.raises(NotReady, match="UNKNOWN_TOPIC"):
            publisher.flush()
        before = stored(stack, topic)
        publisher.send(topic, "key", {})
        publisher.flush()
        assert stored(stack, topic) > before


def test_of_records_that_are_sent_together_each_is_told_what_became_of_it(stack: Settings, topic: str) -> None:
    before = end_offsets(stack, topic)
    with Publisher(stack, reports=True) as publisher:
        record, nowhere = (topic, b"key", b"{}"), (f"no-{uuid.uuid4().hex}", None, b"")
        too_large = (topic, None, bytes(2 * topics.RECORD_LIMIT_BYTES))
        first, missing, large, last = publisher.send_each([record, nowhere, too_large, record])
    assert [each.error for each in (first, last)] == [None, None]
    assert "UNKNOWN_TOPIC" in (missing.error or "")
    assert "MSG_SIZE_TOO_LARGE" in (large.error or "")
    assert first.partition == last.partition
    assert (first.offset, last.offset) == (before[first.partition], before[first.partition] + 1)


def test_a_publisher_finds_a_topic_that_was_missing(stack: Settings) -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    with Publisher(stack, reports=True) as publisher:
        (missing,) = publisher.send_each([(name, b"key", b"{}")])
        assert missing.error is not None
        new_topic(stack, 2, name)
        assert eventually(lambda: publisher.send_each([(name, b"key", b"{}")])[0].error is None, timeout_s=60)


def test_a_record_that_is_too_large_is_refused_at_once(stack: Settings, topic: str) -> None:
    with Publisher(stack) as publisher, pytest.raises(NotReady, match="MSG_SIZE_TOO_LARGE"):
        publisher.send_record(topic, None, bytes(2 * topics.RECORD_LIMIT_BYTES))


def test_more_than_a_publisher_holds_is_stored_all_the_same(stack: Settings, topic: str) -> None:
    value = bytes(500_000)
    with Publisher(stack) as publisher:
        before = stored(stack, topic)
        for _ in range(200):  # 100 MB
            publisher.send_record(topic, b"key", value)
        publisher.flush()
        assert stored(stack, topic) - before >= 200


def test_without_a_broker_nobody_is_left_waiting(stack: Settings) -> None:
    with pytest.raises(NotReady):
        Publisher(stack.model_copy(update={"kafka_bootstrap": "127.0.0.1:9"}))
