"""Topics that an earlier version made keep what this one promises."""

from uuid import uuid4

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from deeplambda.adapters.kafka import client_options, create_topics
from deeplambda.config import Settings
from deeplambda.records import topics


def settings_of(stack: Settings, topic: str) -> dict[str, str]:
    with KafkaAdminClient(**client_options(stack)) as admin:
        asked = [ConfigResource(ConfigResourceType.TOPIC, topic)]
        found = admin.describe_configs(asked, config_filter="all")["topic"][topic]
    return {name: each["value"] for name, each in found.items()}


def test_topics_of_0_1_0_get_the_broker_s_time_and_the_time_that_records_are_kept(stack: Settings) -> None:
    name = f"old{uuid4().hex[:8]}"
    of_0_1_0 = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "16777216"}}
    with KafkaAdminClient(**client_options(stack)) as admin:
        admin.create_topics({topics.events(name): of_0_1_0, topics.dead_letters(name): of_0_1_0})
    assert settings_of(stack, topics.events(name))["message.timestamp.type"] == "CreateTime"
    for _ in range(2):
        create_topics(stack.model_copy(update={"applications": (name,)}))
        for topic in (topics.events(name), topics.dead_letters(name)):
            found = settings_of(stack, topic)
            promised = next(each.config for each in topics.all_topics([name], 1) if each.name == topic)
            assert {each: found[each] for each in promised} == promised
