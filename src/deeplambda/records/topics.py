"""Names and settings of the topics, Kafka's and MQTT's: part of the platform's public interface."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

LIFECYCLE = "deeplambda.lifecycle"
CHAMPIONS = "deeplambda.champions"
EXPERIMENTS = "deeplambda.experiments"
METRICS = "deeplambda.metrics"

RECORD_LIMIT_BYTES = 16 * 1024 * 1024
"""The broker's limit, well above the platform's limit on an event, so that a large one can arrive and be refused."""

MQTT_IN_FLIGHT = 50
"""How many messages an MQTT client may hold without acknowledging them."""

LABELS_BEFORE = timedelta(days=1)
"""A label is looked for from so long before its event on: an event's time is its producer's, a label's the broker's."""

_WHOSE_TIME, _HOW_LONG = "message.timestamp.type", "retention.ms"
_DAY_MS = 24 * 3600 * 1000


def events(application: str) -> str:
    """Producers write here, keyed by event id."""
    return f"{application}.events"


def predictions(application: str) -> str:
    """One record for each scored event."""
    return f"{application}.predictions"


def shadow_predictions(application: str) -> str:
    """What champion and candidate say of the same events while a shadow runs; no view shows it."""
    return f"{application}.shadow-predictions"


def labels(application: str) -> str:
    """Ground truth that arrives later: `{"event_id": …, "label": …}`."""
    return f"{application}.labels"


def dead_letters(application: str) -> str:
    """Refused events, and why."""
    return f"{application}.dead-letters"


def mqtt_events(application: str) -> str:
    """The MQTT topics of an application's events; what follows `events/` is the device's to choose."""
    return f"{application}/events/#"


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic as it is created; `config` are Kafka's topic settings."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


def all_topics(applications: Iterable[str], partitions: int, replication: int = 1) -> list[Topic]:
    """Every topic of the platform and of `applications`, whose topics get `partitions` partitions.

    A record's time is when the broker took it, whatever its producer's clock says.
    """
    promised = {_WHOSE_TIME: "LogAppendTime", "min.insync.replicas": str(in_sync_replicas(replication))}
    own = promised | {"max.message.bytes": str(RECORD_LIMIT_BYTES)}
    platform = [
        Topic(name=LIFECYCLE, partitions=1, config=promised | _kept(days=30)),
        Topic(name=CHAMPIONS, partitions=1, config=promised | {"cleanup.policy": "compact"}),
        Topic(name=EXPERIMENTS, partitions=1, config=promised | {"cleanup.policy": "compact"}),
        Topic(name=METRICS, partitions=1, config=promised | _kept(days=7)),
    ]
    return platform + [
        Topic(name=topic(application), partitions=partitions, config=own | _kept(days=days))
        for application in applications
        for topic, days in ((events, 7), (predictions, 7), (shadow_predictions, 7), (labels, 7), (dead_letters, 30))
    ]


def missing_promises(topic: Topic, told: Mapping[str, str]) -> Mapping[str, str]:
    """What a topic that an earlier version made has yet to be told: to take the broker's time and, unless somebody has
    said it, how long to keep records. told: the settings that it has of its own."""
    return {
        name: value
        for name, value in topic.config.items()
        if (name == _WHOSE_TIME and told.get(name) != value) or (name == _HOW_LONG and name not in told)
    }


def in_sync_replicas(replication: int) -> int:
    """How many brokers must have a record before it counts as stored: with three replicas, any one may be lost."""
    return 2 if replication > 2 else 1


def _kept(days: int) -> dict[str, str]:
    return {_HOW_LONG: str(days * _DAY_MS)}
