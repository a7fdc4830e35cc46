"""Names and settings of the topics, Kafka's and MQTT's: part of the platform's public interface."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

LIFECYCLE = "deeplambda.lifecycle"
CHAMPIONS = "deeplambda.champions"
METRICS = "deeplambda.metrics"

RECORD_LIMIT_BYTES = 16 * 1024 * 1024
"""The broker's limit, well above the platform's limit on an event, so that a large one can arrive and be refused."""

MQTT_IN_FLIGHT = 50
"""How many messages an MQTT client may hold without acknowledging them."""

_WEEK_MS = 7 * 24 * 3600 * 1000


def events(application: str) -> str:
    """Producers write here, keyed by event id."""
    return f"{application}.events"


def predictions(application: str) -> str:
    """One record for each scored event."""
    return f"{application}.predictions"


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


def all_topics(applications: Iterable[str], partitions: int) -> list[Topic]:
    """Every topic of the platform and of `applications`, whose topics get `partitions` partitions."""
    large = {"max.message.bytes": str(RECORD_LIMIT_BYTES)}
    platform = [
        Topic(name=LIFECYCLE, partitions=1, config={"retention.ms": "-1"}),
        Topic(name=CHAMPIONS, partitions=1, config={"cleanup.policy": "compact"}),
        Topic(name=METRICS, partitions=1, config={"retention.ms": str(_WEEK_MS)}),
    ]
    return platform + [
        Topic(name=topic(application), partitions=partitions, config=large)
        for application in applications
        for topic in (events, predictions, labels, dead_letters)
    ]
