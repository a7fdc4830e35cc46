"""Kafka: topics, a publisher whose acknowledgement means stored, consumers.

kafka-python where records are few, and to look after topics. librdkafka (confluent-kafka) where every event passes: it
takes a tenth of the processor's time for a record, and none of it under the interpreter's lock.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, Self

from confluent_kafka import Consumer as LibrdkafkaConsumer
from confluent_kafka import KafkaError as LibrdkafkaError
from confluent_kafka import KafkaException, Message, Producer
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ConfigResource,
    ConfigResourceType,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import KafkaError, LeaderNotAvailableError, TopicAlreadyExistsError
from kafka.structs import OffsetAndMetadata
from pydantic_core import to_json

from deeplambda.config import Settings, remedy_for
from deeplambda.errors import NoTopic, NotReady
from deeplambda.records import topics

_RECONNECT_MS = 1_000  # with a longer wait a client reconnects long after the broker is back
_METADATA_MS = 20_000  # how soon a partition that was added is read
_OF_THE_TOPIC = "DYNAMIC_TOPIC_CONFIG"
_CONNECT_S, _NO_TOPIC_MS = 5.0, 5_000
_LINGER_MS, _REQUEST_BYTES, _QUEUE_KIB = 20, 256 * 1024, 64 * 1024
"""What a publisher collects of a partition before it sends, and holds of all together. A flush sends what there is."""


def client_options(settings: Settings) -> dict[str, Any]:
    """Address and login for any of kafka-python's clients."""
    options: dict[str, Any] = {"bootstrap_servers": settings.kafka_bootstrap}
    if settings.kafka_security != "PLAINTEXT":
        options |= {
            "security_protocol": settings.kafka_security,
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": settings.kafka_user,
            "sasl_plain_password": settings.kafka_password.get_secret_value(),
        }
    return options


def librdkafka_options(settings: Settings) -> dict[str, Any]:
    """The same for librdkafka's clients, which log where kafka-python's do."""
    options: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap,
        "reconnect.backoff.max.ms": _RECONNECT_MS,
        "logger": logging.getLogger("kafka"),
    }
    if settings.kafka_security != "PLAINTEXT":
        options |= {
            "security.protocol": settings.kafka_security,
            "sasl.mechanism": "PLAIN",
            "sasl.username": settings.kafka_user,
            "sasl.password": settings.kafka_password.get_secret_value(),
        }
    return options


def assigned_options(settings: Settings, group: str) -> dict[str, Any]:
    """Of a consumer of librdkafka's that reads what it is told to, from where it is told, and commits only when asked.

    It does not join its group: a part that was killed would have to wait until its old session has expired.
    """
    return librdkafka_options(settings) | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_uncommitted",
    }


def received(reader: LibrdkafkaConsumer, timeout_s: float, at_most: int) -> list[Any]:
    """The messages that have come, errors among them, once there is one."""
    first = reader.poll(timeout_s)
    return [] if first is None else [first, *reader.consume(at_most - 1, 0)]  # which waits for no more


def spark_options(settings: Settings) -> dict[str, str]:
    """The same for Spark's Kafka source and sink, which redact the password in their logs."""
    options = {"kafka.bootstrap.servers": settings.kafka_bootstrap}
    if settings.kafka_security != "PLAINTEXT":
        options |= {
            "kafka.security.protocol": settings.kafka_security,
            "kafka.sasl.mechanism": "PLAIN",
            "kafka.sasl.jaas.config": plain_login(settings.kafka_user, settings.kafka_password.get_secret_value()),
        }
    return options


def plain_login(user: str, password: str, *others: tuple[str, str]) -> str:
    """A JAAS line for SASL PLAIN: the account to log in as and, on a broker, the `others` that may log in."""
    known = "".join(f' user_{name}="{secret}"' for name, secret in others)
    login = "org.apache.kafka.common.security.plain.PlainLoginModule"
    return f'{login} required username="{user}" password="{password}"{known};'


@contextmanager
def kafka_errors(settings: Settings) -> Iterator[None]:
    """The clients' exceptions as `NotReady`."""
    try:
        yield
    except KafkaError as exc:
        raise _not_ready(settings, f"{type(exc).__name__}: {exc}") from exc
    except KafkaException as exc:
        raise _not_ready(settings, _in_words(exc.args[0])) from exc


def kafka_remedy(settings: Settings) -> str:
    """What to do when Kafka refuses, or does not answer."""
    names = ("kafka_bootstrap", "kafka_security", "kafka_user", "kafka_password")
    return remedy_for("kafka", settings.kafka_bootstrap, *names)


def _not_ready(settings: Settings, why: str) -> NotReady:
    return NotReady(
        f"Kafka at {settings.kafka_bootstrap} did not answer: {why}",
        kafka_remedy(settings),
    )


def _in_words(error: LibrdkafkaError) -> str:
    return f"{error.name()}: {error.str()}"


def create_topics(settings: Settings) -> list[str]:
    """Create the topics that are missing, and have those that an earlier version made take the broker's time as well;
    returns the names of the new ones. Raises: NotReady."""
    with kafka_errors(settings):
        admin = KafkaAdminClient(**client_options(settings))
        try:
            existing = set(admin.list_topics())
            wanted = topics.all_topics(settings.applications, settings.kafka_partitions, settings.kafka_replication)
            _keep_promises(settings, admin, [topic for topic in wanted if topic.name in existing])
            missing = [topic for topic in wanted if topic.name not in existing]
            if missing:
                admin.create_topics(
                    {
                        topic.name: {
                            "num_partitions": topic.partitions,
                            "replication_factor": settings.kafka_replication,
                            "configs": dict(topic.config),
                        }
                        for topic in missing
                    }
                )
        except TopicAlreadyExistsError:  # another process has just created them
            missing = []
        finally:
            admin.close()
    return [topic.name for topic in missing]


def _keep_promises(settings: Settings, admin: KafkaAdminClient, there: Sequence[topics.Topic]) -> None:
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in there]
    found = admin.describe_configs(asked, config_filter="all").get("topic", {}) if asked else {}
    changes = []
    for topic in there:
        told = {n: each["value"] for n, each in found[topic.name].items() if each["config_source"] == _OF_THE_TOPIC}
        if missing := topics.missing_promises(topic, told):
            changes.append(ConfigResource(ConfigResourceType.TOPIC, topic.name, dict(missing)))
    answers = admin.alter_configs(changes).get("topic", {}) if changes else {}
    if refused := [f"{name}: {answer}" for name, answer in answers.items() if answer != "OK"]:
        raise _not_ready(settings, f"settings of a topic could not be changed: {refused[0]}")


def grant_topic_access(settings: Settings, user: str, *, write: Iterable[str]) -> None:
    """Let `user` write to these topics, and to nothing else. Idempotent. Raises: NotReady."""
    allowed = [
        ACL(f"User:{user}", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(ResourceType.TOPIC, topic))
        for topic in write
        for operation in (ACLOperation.WRITE, ACLOperation.DESCRIBE)
    ]
    # An idempotent producer, as most clients are by default, needs this of the cluster on older brokers.
    allowed.append(
        ACL(
            f"User:{user}",
            "*",
            ACLOperation.IDEMPOTENT_WRITE,
            ACLPermissionType.ALLOW,
            ResourcePattern(ResourceType.CLUSTER, "kafka-cluster"),
        )
    )
    with kafka_errors(settings), KafkaAdminClient(**client_options(settings)) as admin:
        done = admin.create_acls(allowed)
    if done["failed"]:
        raise NotReady(f"Kafka refused an access list: {done['failed'][0]}", "see the broker's log")


_Told = Callable[[LibrdkafkaError | None, Message], None]


class Sent(NamedTuple):
    """What became of a record. partition, offset: where the broker has stored it, -1 where `error` says why not."""

    partition: int
    offset: int
    error: str | None


class Publisher:
    """Sends JSON records; `flush()` returns once the broker has stored all of them. One per process is enough.

    Records whose order matters are flushed one by one. The producer is not idempotent, though that would cost nothing:
    when the broker refuses the first batch of a new one and takes the second, it then drops the first, sent again, as
    a duplicate.

    reports: whether it hears of each record that was stored, as `send_each` needs; else only of the others.
    """

    def __init__(self, settings: Settings, *, reports: bool = False) -> None:
        self._settings = settings
        self._failures: list[LibrdkafkaError] = []
        self._producer = Producer(
            librdkafka_options(settings)
            | {
                "acks": "all",
                "partitioner": "murmur2_random",  # as Kafka's own clients: a key's records stay in one partition
                "linger.ms": _LINGER_MS,
                "batch.size": _REQUEST_BYTES,
                "message.max.bytes": topics.RECORD_LIMIT_BYTES,
                "queue.buffering.max.kbytes": _QUEUE_KIB,
                "topic.metadata.propagation.max.ms": _NO_TOPIC_MS,
                "delivery.report.only.error": not reports,
            }
        )
        with kafka_errors(settings):
            self._producer.list_topics(timeout=_CONNECT_S)

    def send(self, topic: str, key: str, value: Any) -> None:
        """Queue one record. value: anything that JSON can hold, pydantic models included. Raises: NotReady."""
        self.send_bytes(topic, key, to_json(value))

    def send_bytes(self, topic: str, key: str | None, value: bytes) -> None:
        """Queue one record whose value is JSON already. Raises: NotReady."""
        self.send_record(topic, None if key is None else key.encode(), value)

    def send_record(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        """Queue one record as it is. Raises: NotReady."""
        with kafka_errors(self._settings):
            self._queue(topic, key, value, self._failed, make_room=self.flush)

    def send_each(self, records: Sequence[tuple[str, bytes | None, bytes | None]], timeout_s: float = 30) -> list[Sent]:
        """Send records, each a topic, key and value, and wait; what became of each, in their order."""
        became: dict[int, Sent] = {}
        for n, (topic, key, value) in enumerate(records):
            try:
                told = partial(_note, became, n)
                self._queue(topic, key, value, told, make_room=partial(self._all_told, timeout_s))
            except KafkaException as exc:
                became[n] = Sent(-1, -1, _in_words(exc.args[0]))
        self._all_told(timeout_s)
        return [became[n] for n in range(len(records))]

    def _queue(
        self, topic: str, key: bytes | None, value: bytes | None, told: _Told, make_room: Callable[[], object]
    ) -> None:
        try:
            self._producer.produce(topic, value, key, on_delivery=told)
        except BufferError:  # as much is queued as may be
            make_room()
            self._producer.produce(topic, value, key, on_delivery=told)

    def flush(self, timeout_s: float = 30) -> None:
        """Wait until every queued record is stored. Raises: NotReady when one is not; queue it again."""
        left = self._all_told(timeout_s)
        failures, self._failures = self._failures, []
        if failures:
            why = f"{left} records were not stored within {timeout_s:g} s" if left else _in_words(failures[0])
            raise _not_ready(self._settings, why)

    def _all_told(self, timeout_s: float) -> int:
        """Have every queued record stored or given up; how many were given up for the time it took."""
        left = self._producer.flush(timeout_s)
        if left:
            self._producer.purge()
            self._producer.flush()
        return left

    def _failed(self, error: LibrdkafkaError | None, _: Message) -> None:
        if error is not None:
            self._failures.append(error)

    def close(self) -> None:
        """Flush and disconnect."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _note(became: dict[int, Sent], n: int, error: LibrdkafkaError | None, message: Message) -> None:
    if error is None:
        became[n] = Sent(message.partition() or 0, message.offset() or 0, None)
    else:
        became[n] = Sent(-1, -1, _in_words(error))


class Record(NamedTuple):
    """What Kafka keeps of a record. timestamp: ms."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None

    @classmethod
    def of(cls, message: Any) -> Self:
        """From librdkafka's, which is no error."""
        when = message.timestamp()[1]
        return cls(message.topic(), message.partition(), message.offset(), when, message.key(), message.value())


class Consumer(KafkaConsumer):  # type: ignore[misc]  # kafka-python has no types
    """A consumer of its topics' partitions, also of those that are added while it reads. Made by `consumer`."""

    def __init__(self, names: Iterable[str], *, resumes: bool, **options: Any) -> None:
        super().__init__(**options)
        self._names, self._resumes, self._asks_at_s = tuple(names), resumes, 0.0

    def follow_partitions(self) -> None:
        """Assign the partitions that are new. `poll` calls it; one who never polls calls it before `assignment`."""
        known, partitions_of = self.assignment(), self._cluster.partitions_for_topic
        if time.monotonic() >= self._asks_at_s:  # of a topic that is missing, Kafka itself: each time it answers of all
            partitions_of, self._asks_at_s = self.partitions_for_topic, time.monotonic() + _METADATA_MS / 1e3
        found = {TopicPartition(name, p) for name in self._names for p in partitions_of(name) or ()}
        if added := found - known:
            self.assign(sorted(known | added))
            if not self._resumes:
                self.seek_to_beginning(*added)

    def poll(self, *arguments: Any, **options: Any) -> Any:
        """As kafka-python's, over the partitions that there are by now."""
        self.follow_partitions()
        return super().poll(*arguments, **options)

    def beginning_offsets(self, *arguments: Any, **options: Any) -> Any:
        """As kafka-python's. Raises: LeaderNotAvailableError where a partition has no leader at the moment."""
        with _leaders():
            return super().beginning_offsets(*arguments, **options)

    def end_offsets(self, *arguments: Any, **options: Any) -> Any:
        """As kafka-python's. Raises: LeaderNotAvailableError where a partition has no leader at the moment."""
        with _leaders():
            return super().end_offsets(*arguments, **options)

    def has_reached(self, ends: Mapping[TopicPartition, int]) -> bool:
        """Whether it has read up to these offsets."""
        return all(self.position(each) >= end for each, end in ends.items())

    def commit_but(self, waiting: Iterable[tuple[TopicPartition, int]]) -> None:
        """Commit what was read, of each partition up to the first record that still waits: a restart reads it again.

        waiting: partitions and offsets.
        """
        reached = dict(self._subscription.all_consumed_offsets())
        for partition, offset in waiting:
            if partition in reached and offset < reached[partition].offset:
                reached[partition] = OffsetAndMetadata(offset, "", -1)
        self.commit(reached)


@contextmanager
def _leaders() -> Iterator[None]:
    try:
        yield
    except KeyError as exc:  # kafka-python asks the leaders, and looks for the answers of all
        raise LeaderNotAvailableError(f"{exc} has no leader") from exc


def consumer(
    settings: Settings, *names: str, group: str | None = None, only_reads: bool = False, some_do: bool = False
) -> Consumer:
    """A consumer of every partition of `names`, which commits only by `commit()`. Raises: NotReady, NoTopic.

    group: whose committed offsets it resumes from and commits to; None: reads from the beginning and commits nothing.
    It does not join the group: a part that was killed would have to wait until its old session has expired.
    only_reads: whether it asks little else of the broker once it reads: where partitions end, for one, waits behind a
    fetch which finds nothing. So the broker may hold one for longer, and an idle consumer takes less than half as much.
    some_do: whether all topics but one may be missing, so that one application's costs the others nothing; a topic is
    read once it is there.
    """
    with kafka_errors(settings):
        made = Consumer(
            names,
            resumes=group is not None,
            **client_options(settings),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=topics.RECORD_LIMIT_BYTES,
            fetch_max_wait_ms=500 if only_reads else 100,
            allow_auto_create_topics=False,
            reconnect_backoff_max_ms=_RECONNECT_MS,
            metadata_max_age_ms=_METADATA_MS,
        )
        absent = [name for name in names if not made.partitions_for_topic(name)]
        if absent and not (some_do and len(absent) < len(names)):
            made.close()
            raise NoTopic(f"Kafka has no topic {absent[0]!r}", "run 'deeplambda up', which creates topics")
        made.follow_partitions()
    return made


def begin_at(reader: Consumer, moment: datetime) -> None:
    """Go on where the reader's group has come to; at first, with what came since `moment`."""
    new = [partition for partition in reader.assignment() if reader.committed(partition) is None]
    at_ms = int(moment.timestamp() * 1000)
    found = reader.offsets_for_times(dict.fromkeys(new, at_ms)) if new else {}
    ends = reader.end_offsets(new) if new else {}
    for partition in new:
        reader.seek(partition, found[partition].offset if found.get(partition) else ends[partition])


def offset_ranges(settings: Settings, topic: str) -> dict[int, tuple[int, int]]:
    """By partition, the offset of the first record that has not expired, and the one that the next record will get.

    Raises: NotReady.
    """
    reader = consumer(settings, topic)
    try:
        with kafka_errors(settings):
            firsts, ends = (ask(reader.assignment()) for ask in (reader.beginning_offsets, reader.end_offsets))
            return {tp.partition: (first, ends[tp]) for tp, first in firsts.items()}
    finally:
        reader.close()


def end_offsets(settings: Settings, topic: str) -> dict[int, int]:
    """By partition, the offset that the next record will get. Raises: NotReady."""
    reader = consumer(settings, topic)
    try:
        with kafka_errors(settings):
            return {tp.partition: end for tp, end in reader.end_offsets(reader.assignment()).items()}
    finally:
        reader.close()
