"""Live accuracy: what the stream answered, and with which version, beside the labels that come later.

1. A label is checked as for training; one that does not pass takes no other's place.
2. The answer to its event is looked up: in `live_answers`, where rows of the real-time view that were trimmed or
   replaced wait for their labels (`serving_layer/views`), or else in that view. A label that is there before its
   answer, or is from the future, waits a while.
3. Answers with their labels, and whether they were right, are written to `live_answers` all at once. An event that is
   labelled again keeps the label which is the newest by the broker's time, so records that are taken twice change
   nothing: after a restart those that waited are read again.
What a backfill scored again is no live answer; a batch view is none either, for a later version may have made it.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from kafka import TopicPartition
from pydantic_core import from_json, to_json
from sqlalchemy import Connection, Engine, bindparam, exists, null, select, text

from deeplambda.adapters import mysql
from deeplambda.clock import now
from deeplambda.objective import Objective, label_text, shortened
from deeplambda.state.tables import (
    LABEL_LIMIT,
    LIVE_ANSWERS,
    LIVE_ANSWERS_KEPT,
    LIVE_ANSWERS_KEPT_FOR,
    REALTIME_PREDICTIONS,
)

_ID_LIMIT = 128  # as of an event's
_ERROR_LIMIT = 1e100
"""What is further off is no label but a mistake, and MySQL could not add up its squares."""
_LABELS_WAITING, _LABEL_ATTEMPTS = 100_000, 60
_LABELS_AT_ONCE = 2_000

_ANSWERS = LIVE_ANSWERS.c
_OF_LABEL = ("label", "labelled_at", "correct", "error")
_OF_ANSWER = [column.name for column in LIVE_ANSWERS.columns if column.name not in _OF_LABEL]
# Not SQLAlchemy's upsert: for MySQL it names the row by an alias, with which PyMySQL sends each row by itself.
_WRITE = text(
    f"REPLACE INTO {LIVE_ANSWERS.name} ({', '.join(_ANSWERS.keys())}) VALUES (:{', :'.join(_ANSWERS.keys())})"
).bindparams(*(bindparam(column.name, type_=column.type) for column in LIVE_ANSWERS.columns))


Answer = dict[str, Any]
"""A row of `live_answers`, by column."""


class Label(NamedTuple):
    """What a record of `<application>.labels` says. at: the broker's time. position: the record's partition and offset.
    attempts: how often its answer was looked for."""

    event_id: str
    label: str
    at: datetime
    position: tuple[TopicPartition, int] | None = None
    attempts: int = 0


def label_of(record: Any) -> Label | None:
    """The label in a record; None where there is none, or one that is too long to be of any event."""
    try:
        given = from_json(record.value or b"")
    except ValueError:
        return None
    if not isinstance(given, dict) or given.get("label") is None:
        return None
    event_id = given.get("event_id") or (record.key or b"").decode(errors="replace")
    position = TopicPartition(record.topic, record.partition), record.offset
    # What is no text is kept as JSON has it, as the archive does.
    text = given["label"] if isinstance(given["label"], str) else to_json(given["label"]).decode()
    label = Label(str(event_id), text, datetime.fromtimestamp(record.timestamp / 1000, UTC), position)
    return label if 0 < len(label.event_id) <= _ID_LIMIT and len(label.label) <= LABEL_LIMIT else None


class LiveAnswers:
    """One application's."""

    def __init__(self, engine: Engine, application: str) -> None:
        self._engine, self._application = engine, application
        self._waiting: deque[Label] = deque(maxlen=_LABELS_WAITING)

    def wait(self, labels: Iterable[Label]) -> None:
        """Keep labels for the next `take_waiting`."""
        self._waiting.extend(labels)

    @property
    def waiting(self) -> list[tuple[TopicPartition, int]]:
        """The records whose labels wait: a restart has to read them again."""
        return [label.position for label in self._waiting if label.position is not None]

    def take_waiting(self, objective: Objective) -> list[Answer]:
        """As `take`, of the labels that wait."""
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        pieces = (waiting[at : at + _LABELS_AT_ONCE] for at in range(0, len(waiting), _LABELS_AT_ONCE))
        return [answer for piece in pieces for answer in self.take(piece, objective)]

    def take(self, labels: Sequence[Label], objective: Objective) -> list[Answer]:
        """Write the answers that labels are of; the rows that were written. Raises: NotReady."""
        if not labels:
            return []
        written: dict[tuple[str, int], Answer] = {}
        with mysql.mysql_errors(), self._engine.begin() as connection:
            found = self._answers(connection, {each.event_id for each in labels})
            for label in labels:
                answers = found[label.event_id] if label.at <= now() else {}
                if not answers and label.attempts < _LABEL_ATTEMPTS:
                    self._waiting.append(label._replace(attempts=label.attempts + 1))
                for version, answer in answers.items():
                    if (row := judged(answer, label, objective)) is not None:
                        answers[version] = written[label.event_id, version] = row
            if written:
                connection.execute(_WRITE, list(written.values()))
        return list(written.values())

    def _answers(self, connection: Connection, event_ids: Iterable[str]) -> dict[str, dict[int, Answer]]:
        """By event and version."""
        live = REALTIME_PREDICTIONS.c
        of_view = select(*(live[name] for name in _OF_ANSWER), *(null().label(name) for name in _OF_LABEL)).where(
            live.application == self._application, live.event_id.in_(event_ids), live.replayed.is_not(True)
        )
        kept = select(LIVE_ANSWERS).where(_ANSWERS.application == self._application, _ANSWERS.event_id.in_(event_ids))
        found: dict[str, dict[int, Answer]] = defaultdict(dict)
        for query in (of_view, kept):
            for row in connection.execute(query).mappings():
                found[row["event_id"]][row["model_version"]] = dict(row)
        return found

    def forget_oldest(self) -> None:
        """Delete what is more than the newest LIVE_ANSWERS_KEPT with a label and without, or too old."""
        since, live = now() - LIVE_ANSWERS_KEPT_FOR, REALTIME_PREDICTIONS.c
        own, labelled_at = _ANSWERS.application == self._application, _ANSWERS.labelled_at
        in_view = exists().where(live.application == self._application, live.event_id == _ANSWERS.event_id)
        for at, those in (
            (labelled_at, own & labelled_at.is_not(None) & ~in_view),  # without it, the view's would have no label
            (_ANSWERS.predicted_at, own & labelled_at.is_(None)),
        ):
            beyond = select(at).where(those).order_by(at.desc()).offset(LIVE_ANSWERS_KEPT).limit(1)
            with mysql.mysql_errors(), self._engine.connect() as connection:
                oldest = max(connection.scalar(beyond) or since, since)
            mysql.delete_in_chunks(self._engine, LIVE_ANSWERS, those & (at <= oldest))


def judged(answer: Answer, label: Label, objective: Objective) -> Answer | None:
    """An answer's row with a label; None for one that is none of the objective's, that it has, or that is older."""
    if answer["labelled_at"] is not None and label.at < answer["labelled_at"]:
        return None
    try:
        truth = shortened(label_text(objective, label.label))
        error = None if answer["value"] is None else abs(answer["value"] - float(truth))
    except Exception:  # whatever an objective of the user's own raises
        return None
    if error is not None and not error < _ERROR_LIMIT:  # nor is NaN
        return None
    if (answer["label"], answer["labelled_at"]) == (truth, label.at):
        return None
    correct = answer["prediction"] == truth if error is None else None
    return answer | {"label": truth, "labelled_at": label.at, "correct": correct, "error": error}
