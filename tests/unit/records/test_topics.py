"""What a topic promises, whichever version made it."""

import pytest

from deeplambda.records.topics import Topic, all_topics, missing_promises

TOPICS = {topic.name: topic for topic in all_topics(["digits"], partitions=4)}
DAY_MS = 24 * 3600 * 1000


@pytest.mark.parametrize("topic", TOPICS.values(), ids=lambda topic: topic.name)
def test_a_topic_that_this_version_made_is_told_nothing(topic: Topic) -> None:
    assert missing_promises(topic, topic.config) == {}


def test_a_topic_of_0_1_0_gets_the_broker_s_time_and_keeps_records_as_long_as_is_promised() -> None:
    found = missing_promises(TOPICS["digits.dead-letters"], {"max.message.bytes": "16777216"})
    assert found == {"message.timestamp.type": "LogAppendTime", "retention.ms": str(30 * DAY_MS)}


def test_what_somebody_has_said_of_how_long_a_topic_keeps_records_stands() -> None:
    told = {"retention.ms": str(90 * DAY_MS), "message.timestamp.type": "CreateTime"}
    assert missing_promises(TOPICS["digits.events"], told) == {"message.timestamp.type": "LogAppendTime"}
