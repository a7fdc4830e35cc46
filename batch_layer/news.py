"""What is known that may start a generation: how many labels came, when drift was noticed, whether its alarm stands.

Only offsets and the platform's own facts are read, no label: asking every few seconds costs next to nothing.
"""

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import takewhile
from typing import Any, Literal

from kafka import TopicPartition
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError
from sqlalchemy import Connection, func, select

from batch_layer.triggers import Known
from deeplambda.adapters.kafka import consumer, kafka_errors
from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.state import generation_store, registry
from deeplambda.state.card import Card
from deeplambda.state.tables import DRIFT_WINDOWS


class _Drift(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["DriftDetected"]
    application: str
    at: AwareDatetime


class News:
    """Reads the lifecycle topic as it grows. Use it as a context. Raises: NotReady from every method."""

    def __init__(self, settings: Settings, applications: Iterable[str]) -> None:
        self._settings = settings
        self._labels = consumer(settings, *map(topics.labels, applications), some_do=True)
        self._lifecycle = consumer(settings, topics.LIFECYCLE)
        self._drifts: dict[str, list[datetime]] = defaultdict(list)
        self._after: dict[str, tuple[datetime, dict[int, int]]] = {}

    def label_ends(self, application: str) -> dict[int, int]:
        """By partition, the offset that the application's next label will get."""
        return self._offsets(application, self._labels.end_offsets)

    def known(self, connection: Connection, application: str) -> Known:
        """What is to be known to decide whether a generation is due."""
        champion = registry.champion(connection, application)
        before = generation_store.listed(connection, application)
        last = before[0] if before else None
        drift_at = self._drift_since(application, last.started_at if last else None)
        since = takewhile(lambda each: champion is not None and each.started_at > champion.created_at, before)
        fruitless = takewhile(lambda each: each.state != "promoted", since)
        return Known(
            trained_at=champion.created_at if champion else None,
            last=last,
            new_labels=self.labels_since(application, last.label_offsets if last else {}),
            drift_at=drift_at,
            labels_since_drift=self.labels_since(application, self._offsets_at(application, drift_at))
            if drift_at
            else 0,
            alarm_stands=champion is not None and _alarm_stands(connection, champion),
            fruitless=len(list(fruitless)),
        )

    def labels_since(self, application: str, seen: Mapping[int, int]) -> int:
        """How many labels have come from the offsets `seen` on; of a partition without one, those that Kafka has."""
        firsts = self._offsets(application, self._labels.beginning_offsets)
        ends = self.label_ends(application)
        # Those that have expired meanwhile count as well, for the archive has them.
        return sum(end - seen.get(p, firsts.get(p, 0)) for p, end in ends.items() if end > seen.get(p, 0))

    def _drift_since(self, application: str, moment: datetime | None) -> datetime | None:
        """When the first drift after `moment` was noticed. Monitors repeat themselves, so a later one is no news."""
        self._read_lifecycle()
        noticed = self._drifts[application]
        if moment is not None:
            del noticed[: bisect_right(noticed, moment)]
        return noticed[0] if noticed else None

    def _read_lifecycle(self) -> None:
        with kafka_errors(self._settings):
            ends = self._lifecycle.end_offsets(self._lifecycle.assignment())
            while not self._lifecycle.has_reached(ends):
                for records in self._lifecycle.poll(timeout_ms=500).values():
                    for record in records:
                        with suppress(ValidationError):  # all the other kinds
                            drift = _Drift.model_validate_json(record.value)
                            insort(self._drifts[drift.application], drift.at)

    def _offsets_at(self, application: str, moment: datetime) -> dict[int, int]:
        """By partition, the offset of the first label that the broker took after `moment`, as it was when it was asked
        first: the labels after it expire."""
        if self._after.get(application, (None, {}))[0] != moment:
            self._after[application] = moment, self._asked_offsets_at(application, moment)
        return self._after[application][1]

    def _asked_offsets_at(self, application: str, moment: datetime) -> dict[int, int]:
        asked = {each: int(moment.timestamp() * 1000) for each in self._partitions(application)}
        with kafka_errors(self._settings):
            found = self._labels.offsets_for_times(asked)
        ends = self.label_ends(application)
        return {each.partition: at.offset if at else ends[each.partition] for each, at in found.items()}

    def _offsets(self, application: str, ask: Any) -> dict[int, int]:
        with kafka_errors(self._settings):
            return {each.partition: offset for each, offset in ask(self._partitions(application)).items()}

    def _partitions(self, application: str) -> list[TopicPartition]:
        self._labels.follow_partitions()
        return [each for each in self._labels.assignment() if each.topic == topics.labels(application)]

    def __enter__(self) -> "News":
        return self

    def __exit__(self, *_: object) -> None:
        self._labels.close()
        self._lifecycle.close()


def _alarm_stands(connection: Connection, champion: Card) -> bool:
    """Whether the newest window of a kind is the champion's, and was unlike its reference."""
    table = DRIFT_WINDOWS.c
    newest = select(func.max(table.id)).where(table.application == champion.application).group_by(table.what)
    rows = connection.execute(select(table.version, table.drifted).where(table.id.in_(newest)))
    return any(row.version == champion.version and row.drifted for row in rows)
