"""Monitor: live events, the champion's predictions and, where labels come, its answers, in windows beside the rows that
it was judged by. Runs beside the archive's streams.

1. Labels are written beside the answers that they are of (`live_answers`), whatever version gave them.
2. Kafka's records of events and predictions, and the champion's labelled answers, are collected until a window is full.
3. `drift` compares it with the champion's reference, and each of the three kinds has a detector of its own.
4. One transaction keeps the window in `drift_windows` and, when the detector raises the alarm, writes `DriftDetected`
   to the outbox.
Labels are all taken. The rest takes a tenth of a processor core at most: events and predictions that come faster are
passed over, and windows have gaps between them then.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from kafka import TopicPartition
from pydantic import ValidationError
from sqlalchemy import Connection, delete, insert, select

from batch_layer.drift import THRESHOLD, Detector, compared, named, rarest, worsened
from batch_layer.live_answers import Answer, LiveAnswers, label_of
from batch_layer.summaries import Column, Histogram, Reference, accuracy_columns, input_columns, prediction_columns
from deeplambda.adapters import kafka, mysql
from deeplambda.adapters.kafka import Consumer
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Event, payload_batch
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, NotReady
from deeplambda.objective import Objective
from deeplambda.records import topics
from deeplambda.records.admission import check
from deeplambda.records.lifecycle import DriftDetected, DriftedField, DriftWindow
from deeplambda.records.predictions import Prediction
from deeplambda.service.loops import LoopStatus, in_one_line
from deeplambda.state import outbox, registry
from deeplambda.state.card import REFERENCE, Card, artefact_key
from deeplambda.state.tables import DRIFT_WINDOWS
from deeplambda.state.versions import load_code

GROUP = "deeplambda.drift"
What = Literal["inputs", "predictions", "accuracy"]
WHATS: tuple[What, ...] = get_args(What)
Take = Callable[[Iterable[Any]], None]
STATISTIC = "e-detector"
EXAMPLES = 5

_WORKING_SHARE = 0.1
_LONGEST_PAUSE_S = 5.0
_POLL_ROWS, _POLL_LABELS = 200, 2_000
_LOOK_EVERY_S, _FORGET_EVERY_S = 5.0, 60.0
_WINDOWS_BEHIND = 20
_WINDOWS_KEPT = 2_000

_log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """An event's place, and what of it is compared: the event itself, its prediction, or (whether it was right, by how
    much it was wrong)."""

    event_id: str
    partition: int
    offset: int
    at: datetime
    value: Any


def watch(settings: Settings, status: LoopStatus, stop: threading.Event) -> None:
    """Watch every application until told to stop. Raises: NotReady, after which `Loop` calls it again."""
    watches = [Watch(settings, name) for name in settings.applications]
    takes = {topic: partial(each.alone, take) for each in watches for topic, take in each.takes.items()}
    of_labels = {topics.labels(each.name) for each in watches}
    consumer = partial(kafka.consumer, settings, group=GROUP, only_reads=True, some_do=True)
    with closing(consumer(*(takes.keys() - of_labels))) as reader, closing(consumer(*of_labels)) as labels:
        looked_s = forgot_s = -_FORGET_EVERY_S
        while not stop.is_set():
            with kafka.kafka_errors(settings):
                come, polled = labels.poll(0, _POLL_LABELS), reader.poll(1_000, _POLL_ROWS)
            _take(settings, takes, labels, come, watches)
            started_s = time.monotonic()
            if started_s - looked_s >= _LOOK_EVERY_S:
                looked_s, waited = started_s, _waiting(watches)
                for each in watches:
                    each.alone(each.look)
                    with kafka.kafka_errors(settings):
                        _keep_up(reader, each)
                if waited:  # some of which no longer do: nothing but a label that comes would say so to Kafka
                    with kafka.kafka_errors(settings):
                        labels.commit_but(_waiting(watches))
            if started_s - forgot_s >= _FORGET_EVERY_S:
                forgot_s = started_s
                for each in watches:
                    each.alone(each.answers.forget_oldest)
            _take(settings, takes, reader, polled)
            if troubles := [each.trouble for each in watches if each.trouble is not None]:
                status.waiting("; ".join(troubles))
            else:
                status.working()
            worked_s = time.monotonic() - started_s
            stop.wait(min(_LONGEST_PAUSE_S, worked_s * (1 / _WORKING_SHARE - 1)))


def _take(
    settings: Settings,
    takes: Mapping[str, Take],
    reader: Consumer,
    polled: Mapping[Any, Iterable[Any]],
    watches: Iterable["Watch"] = (),
) -> None:
    """watches: where labels wait, which a restart has to read again."""
    for partition, records in polled.items():
        takes[partition.topic](records)
    if polled:
        with kafka.kafka_errors(settings):
            reader.commit_but(_waiting(watches))


def _waiting(watches: Iterable["Watch"]) -> list[tuple[TopicPartition, int]]:
    return [position for each in watches for position in each.answers.waiting]


def _keep_up(reader: Consumer, watch: "Watch") -> None:
    """Go on with the newest records of a topic that it is far behind in."""
    read: tuple[tuple[str, What], ...] = (
        (topics.events(watch.name), "inputs"),
        (topics.predictions(watch.name), "predictions"),
    )
    for topic, what in read:
        partitions = [each for each in reader.assignment() if each.topic == topic]
        ends: dict[TopicPartition, int] = reader.end_offsets(partitions)  # so seldom it may wait for a fetch
        behind = sum(end - reader.position(partition) for partition, end in ends.items())
        if behind > watch.falls_behind_by:
            _log.info("%s: %d records of %s are passed over", watch.name, behind, topic)
            reader.seek_to_end(*partitions)
            watch.forget(what)


@dataclass(frozen=True, kw_only=True)
class _Champion:
    """What is watched for. window: how many events it has."""

    version: int
    event: type[Event]
    window: int
    reference: Reference


class Watch:
    """One application's windows. `watch` calls all of it, on one thread."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.name = name
        self._settings, self._engine = settings, mysql.engine(settings, "platform")
        self.answers = LiveAnswers(self._engine, name)
        self._version: int | None = None
        self._objective: Objective | None = None
        self._champion: _Champion | None = None
        self._seen: dict[str, list[Seen]] = {what: [] for what in WHATS}
        self._detectors: dict[str, Detector] = {}
        self._unwatched: str | None = None
        self._failures: dict[str, str] = {}

    @property
    def trouble(self) -> str | None:
        """Why the version that serves is not watched, or what failed when it was tried last; None where all is well."""
        said = [*([self._unwatched] if self._unwatched else []), *self._failures.values()]
        return f"{self.name}: {', '.join(said)}" if said else None

    def alone(self, do: Callable[..., None], *given: Any) -> None:
        """Do a part of a turn. What fails by this application's code or records is its own trouble, and no other's:
        those records are passed over. Raises: NotReady; ConfigurationError of MySQL, with which no record is lost."""
        try:
            do(*given)
        except (NotReady, ConfigurationError):
            raise
        except Exception as exc:
            _log.exception("%s is not watched", self.name)
            self._failures[do.__name__] = in_one_line(exc)
        else:
            self._failures.pop(do.__name__, None)

    @property
    def takes(self) -> dict[str, Take]:
        """By topic, what takes its records."""
        return {
            topics.events(self.name): self.events,
            topics.predictions(self.name): self.predictions,
            topics.labels(self.name): self.labels,
        }

    @property
    def falls_behind_by(self) -> int:
        """From how many records on it goes on with the newest."""
        return _WINDOWS_BEHIND * (self._champion.window if self._champion else 0)

    def look(self) -> None:
        """Take up the version that serves, where it is another, and see to the labels that wait. Raises: NotReady."""
        with mysql.mysql_errors(), self._engine.connect() as connection:
            serving = registry.champion(connection, self.name)
            if serving is not None and serving.version != self._version:
                self._detectors = {what: _last(connection, self.name, what, serving.version) for what in WHATS}
        if serving is not None and serving.version != self._version:
            self._version, self._champion, self._seen = serving.version, None, {what: [] for what in WHATS}
            self._unwatched = None
            try:
                self._objective, self._champion = _taken_up(self._settings, serving)
            except NotReady:
                raise
            except Exception as exc:  # whatever its code raises; labels of the versions before are judged
                _log.warning("%s/%d is not watched", self.name, serving.version, exc_info=exc)
                self._unwatched = f"version {serving.version} is not watched: {in_one_line(exc)}"
        if self._objective is not None:
            self._answered(self.answers.take_waiting(self._objective))

    def forget(self, what: What) -> None:
        """Begin a window anew, for what follows does not follow what there is of it."""
        self._seen[what] = []

    def events(self, records: Iterable[Any]) -> None:
        """Take records of `<application>.events`; one that the schema refuses is the stream's business."""
        if (champion := self._champion) is None:
            return
        come = list(records)
        keyed = [(record.key, record.value) for record in come]
        found = check(champion.event, keyed, limit_bytes=self._settings.event_limit_bytes)
        for row, event in zip(found.rows_N, found.events_N, strict=True):
            record = come[row]
            at = datetime.fromtimestamp(record.timestamp / 1000, UTC)
            self._take("inputs", Seen(event.event_id, record.partition, record.offset, at, event))

    def predictions(self, records: Iterable[Any]) -> None:
        """Take records of `<application>.predictions`, as far as the champion made them as the events came."""
        for record in records if self._champion else ():
            try:
                made = Prediction.model_validate_json(record.value or b"")
            except ValidationError:
                continue
            if made.model_version == self._version and not made.replayed:
                position = (made.event_id, made.kafka_partition, made.kafka_offset, made.received_at)
                self._take("predictions", Seen(*position, made))

    def labels(self, records: Iterable[Any]) -> None:
        """Take records of `<application>.labels`, whatever version they judge. Raises: NotReady."""
        found = [label for record in records if (label := label_of(record)) is not None]
        if self._objective is None:  # until a version is taken up nobody can tell what a label is
            self.answers.wait(found)
        else:
            self._answered(self.answers.take(found, self._objective))

    def _answered(self, answers: Iterable[Answer]) -> None:
        for each in answers:
            if self._champion and each["model_version"] == self._version:
                position = (each["event_id"], each["kafka_partition"], each["kafka_offset"], each["occurred_at"])
                self._take("accuracy", Seen(*position, (each["correct"], each["error"])))

    def _take(self, what: What, seen: Seen) -> None:
        self._seen[what].append(seen)
        if self._champion and len(self._seen[what]) >= self._champion.window:
            window, self._seen[what] = self._seen[what], []
            self._conclude(self._champion, what, window)

    def _conclude(self, champion: _Champion, what: What, seen: Sequence[Seen]) -> None:
        reference: dict[str, Histogram] = getattr(champion.reference, what)
        columns = _columns(champion, what, seen)
        fields = compared(reference, columns)
        if what == "accuracy":  # a better one is no drift to be told of
            fields = [
                each if worsened(reference[each.field], columns[each.field]) else each.model_copy(update={"p": 1.0})
                for each in fields
            ]
        if not fields:
            return
        detector = self._detectors[what]
        raised = detector.take(np.array([each.p for each in fields]))
        window, told = _window(seen), named(fields) or sorted(fields, key=lambda each: each.p)[:1]
        first = told[0].field
        fact = DriftDetected(
            application=self.name,
            version=champion.version,
            what=what,
            window=window,
            statistic=STATISTIC,
            value=detector.value,
            threshold=THRESHOLD,
            fields=told,
            examples=[seen[n].event_id for n in rarest(reference[first], columns[first], EXAMPLES)],
        )
        self._keep(fact, detector, raised=raised)

    def _keep(self, fact: DriftDetected, detector: Detector, *, raised: bool) -> None:
        row = {
            **fact.model_dump(mode="json", include={"application", "version", "what", "value", "threshold"}),
            **{name: getattr(fact.window, name) for name in ("rows", "first_at", "last_at")},
            "evidence": fact.model_dump(mode="json", include={"window", "fields", "examples"}),
            "p": min(each.p for each in fact.fields),
            "drifted": detector.drifted,
            "at": fact.at,
        }
        table = DRIFT_WINDOWS.c
        with mysql.mysql_errors(), self._engine.begin() as connection:
            connection.execute(insert(DRIFT_WINDOWS).values(row))
            oldest = connection.scalar(
                select(table.id)
                .where(table.application == self.name, table.what == fact.what)
                .order_by(table.id.desc())
                .offset(_WINDOWS_KEPT)
                .limit(1)
            )
            if oldest is not None:
                old = (table.application == self.name) & (table.what == fact.what) & (table.id <= oldest)
                connection.execute(delete(DRIFT_WINDOWS).where(old))
            if raised:
                outbox.record(connection, topics.LIFECYCLE, self.name, fact)
        if raised:
            _log.warning("%s/%d: %s drift by %s", self.name, self._version, fact.what, _said(fact.fields))


def _taken_up(settings: Settings, card: Card) -> tuple[Objective, _Champion | None]:
    """The objective that labels are checked by, and what is watched for: nothing of a version that was published before
    there were references, or of an application that is not watched."""
    store = ObjectStore(settings)
    application = load_code(store, settings, card).application
    if card.reference_sha256 is None or not application.drift_window:
        return application.objective, None
    raw = store.get(artefact_key(card.application, card.version, REFERENCE), sha256=card.reference_sha256)
    return application.objective, _Champion(
        version=card.version,
        event=application.event,
        window=application.drift_window,
        reference=Reference.model_validate_json(raw),
    )


def _last(connection: Connection, application: str, what: What, version: int) -> Detector:
    """The version's detector as it was after the last window; a new one where that was another version's, for what the
    version was told of before it was replaced is no news of today."""
    table = DRIFT_WINDOWS.c
    query = select(table.version, table.value, table.drifted).where(
        table.application == application, table.what == what
    )
    found = connection.execute(query.order_by(table.id.desc()).limit(1)).first()
    if found is None or found.version != version:
        return Detector()
    return Detector(value=found.value, drifted=bool(found.drifted))


def _columns(champion: _Champion, what: What, seen: Sequence[Seen]) -> dict[str, Column]:
    values = [each.value for each in seen]
    if what == "inputs":
        return input_columns(payload_batch(champion.event, values))
    if what == "predictions":
        given = ([each.prediction for each in values], [each.confidence for each in values])
        return prediction_columns(*given, [each.value for each in values])
    rights, errors = zip(*values, strict=True)
    of_numbers = all(error is not None for error in errors)
    return accuracy_columns(None if of_numbers else rights, errors if of_numbers else None)


def _window(seen: Sequence[Seen]) -> DriftWindow:
    by_partition: dict[int, list[int]] = {}
    for each in seen:
        by_partition.setdefault(each.partition, []).append(each.offset)
    return DriftWindow(
        rows=len(seen),
        first_at=min(each.at for each in seen),
        last_at=max(each.at for each in seen),
        from_offsets={partition: min(offsets) for partition, offsets in by_partition.items()},
        to_offsets={partition: max(offsets) + 1 for partition, offsets in by_partition.items()},
    )


def _said(fields: Sequence[DriftedField]) -> str:
    return ", ".join(f"{each.field} (p {each.p:.1e}, PSI {each.psi:.2f})" for each in fields[:5])
