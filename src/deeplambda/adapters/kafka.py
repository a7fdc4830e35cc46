"""Kafka, by kafka-python: topics, a producer whose acknowledgement means stored, consumers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from kafka.errors import KafkaError, TopicAlreadyExistsError
from pydantic_core import to_json

from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.records import topics

_RECONNECT_MS = 1_000  # with a longer wait a client reconnects long after the broker is back
_METADATA_MS = 20_000  # how soon a partition that was added is read
_LINGER_MS, _REQUEST_BYTES = 20, 256 * 1024
"""What a publisher collects of a partition before it sends: of one partition a request at a time is under way, and with
each record sent at once the others of a batch wait for the first one's answer. A flush sends what there is."""


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
    """kafka-python's exceptions as `NotReady`."""
    try:
        yield
    except KafkaError as exc:
        raise NotReady(
            f"Kafka at {settings.kafka_bootstrap} did not answer: {type(exc).__name__}: {exc}",
            "see 'deeplambda status' and 'deeplambda logs kafka'",
        ) from exc


def create_topics(settings: Settings) -> list[str]:
    """Create the topics that are missing; returns their names. Raises: NotReady."""
    with kafka_errors(settings):
        admin = KafkaAdminClient(**client_options(settings))
        try:
            existing = set(admin.list_topics())
            wanted = topics.all_topics(settings.applications, settings.kafka_partitions, settings.kafka_replication)
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


class Publisher:
    """Sends JSON records; `flush()` returns once the broker has stored all of them. One per process is enough."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with kafka_errors(settings):
            self._producer = KafkaProducer(
                **client_options(settings),
                acks="all",
                linger_ms=_LINGER_MS,
                batch_size=_REQUEST_BYTES,
                max_request_size=topics.RECORD_LIMIT_BYTES,
                allow_auto_create_topics=False,
                reconnect_backoff_max_ms=_RECONNECT_MS,
            )
        self._pending: list[Any] = []

    def send(self, topic: str, key: str, value: Any) -> None:
        """Queue one record. value: anything that JSON can hold, pydantic models included. Raises: NotReady."""
        self.send_bytes(topic, key, to_json(value))

    def send_bytes(self, topic: str, key: str | None, value: bytes) -> None:
        """Queue one record whose value is JSON already. Raises: NotReady."""
        self.send_record(topic, None if key is None else key.encode(), value)

    def send_record(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        """Queue one record as it is. Raises: NotReady."""
        with kafka_errors(self._settings):
            self._pending.append(self._producer.send(topic, key=key, value=value))

    def flush(self, timeout_s: float = 30) -> None:
        """Wait until every queued record is stored. Raises: NotReady when one is not; queue it again."""
        pending, self._pending = self._pending, []
        with kafka_errors(self._settings):
            self._producer.flush(timeout=timeout_s)
            for future in pending:
                future.get(timeout=timeout_s)

    def close(self) -> None:
        """Flush and disconnect."""
        self.flush()
        self._producer.close()

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Consumer(KafkaConsumer):  # type: ignore[misc]  # kafka-python has no types
    """A consumer of its share of its topics' partitions, also of those that are added while it reads.

    Made by `consumer`.
    """

    def __init__(
        self, names: Iterable[str], *, resumes: bool, lossless: bool, share: tuple[int, int], **options: Any
    ) -> None:
        super().__init__(**options)
        self._names, self._resumes, self._lossless, self._share = tuple(names), resumes, lossless, share

    def follow_partitions(self) -> None:
        """Assign the partitions that are new. `poll` calls it; one who never polls calls it before `assignment`."""
        known = self.assignment()
        mine, of = self._share
        found = {
            TopicPartition(name, p)
            for place, name in enumerate(self._names)
            for p in self.partitions_for_topic(name)
            if (place + p) % of == mine
        }
        if added := found - known:
            self.assign(sorted(known | added))
            for partition in added:
                if not self._resumes or (self._lossless and self.committed(partition) is None):
                    self.seek_to_beginning(partition)

    def poll(self, *arguments: Any, **options: Any) -> Any:
        """As kafka-python's, over the partitions that there are by now."""
        self.follow_partitions()
        return super().poll(*arguments, **options)


def consumer(
    settings: Settings,
    *names: str,
    group: str | None = None,
    lossless: bool = False,
    share: tuple[int, int] = (0, 1),
    only_reads: bool = False,
) -> Consumer:
    """A consumer of every partition of `names`, which commits only by `commit()`. Raises: NotReady.

    group: whose committed offsets it resumes from and commits to; None: reads from the beginning and commits nothing.
    It does not join the group: a part that was killed would have to wait until its old session has expired.
    lossless: whether it raises, rather than goes on, when the records that it would resume with have expired.
    share: of several consumers that divide the partitions among them, which one it is, from 0, and how many there are.
    only_reads: whether it asks nothing else of the broker once it reads, not where partitions end: that would wait
    behind a fetch which finds nothing. So the broker may hold one for longer, and an idle consumer takes half as much.
    """
    with kafka_errors(settings):
        made = Consumer(
            names,
            resumes=group is not None,
            lossless=lossless,
            share=share,
            **client_options(settings),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none" if lossless else "earliest",
            max_partition_fetch_bytes=topics.RECORD_LIMIT_BYTES,
            fetch_max_wait_ms=500 if only_reads else 100,
            allow_auto_create_topics=False,
            reconnect_backoff_max_ms=_RECONNECT_MS,
            metadata_max_age_ms=_METADATA_MS,
        )
        if absent := [name for name in names if not made.partitions_for_topic(name)]:
            made.close()
            raise NotReady(f"Kafka has no topic {absent[0]!r}", "run 'deeplambda up', which creates topics")
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


def first_offsets(settings: Settings, topic: str) -> dict[int, int]:
    """By partition, the offset of the first record that has not expired. Raises: NotReady."""
    reader = consumer(settings, topic)
    try:
        with kafka_errors(settings):
            return {tp.partition: first for tp, first in reader.beginning_offsets(reader.assignment()).items()}
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
