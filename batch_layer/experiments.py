"""Experiments: what a candidate says of live events beside the champion, joined with labels, until that decides. Runs
beside the archive's streams.

1. A running experiment is found in MySQL; a shadow's process is started (`shadow`), and started again where it ends.
2. Kafka's records are taken: a shadow's pairs of answers, or of a canary's predictions the candidate's and a part of
   the champion's, to `experiment_answers`; labels to the answers that they are of. Only then are offsets committed, and
   what is taken twice is there once.
3. The figures follow from that table alone, so that a process which is killed loses none: how many agreed, failed, were
   right, and the paired difference with its interval, to `experiments` and, whenever labels have doubled, to Kafka.
4. One that runs until it is decided is promoted or rejected by `live_verdicts`, with the gate's verdict from before it.
"""

import logging
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import from_json
from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects.mysql import insert

from batch_layer.live_verdicts import Labelled, Scores, compared, decision, in_words
from batch_layer.shadow import begin_at
from batch_layer.verdicts import Criterion
from deeplambda.adapters import kafka, mysql
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import Conflict, NotReady
from deeplambda.records import topics
from deeplambda.records.experiments import SHADOW_RECORD, Said, ShadowShed, point
from deeplambda.records.lifecycle import ChallengerFailed
from deeplambda.records.predictions import Prediction
from deeplambda.records.verdict import Verdict
from deeplambda.service.loops import LoopStatus, in_one_line
from deeplambda.state import experiment_store, registry
from deeplambda.state.experiment_store import Experiment
from deeplambda.state.tables import EXPERIMENT_ANSWERS
from deeplambda.state.versions import load_code

CONTROLS = 4
"""As many events of the champion's are compared with a canary's as it has, times this: more would say little more."""
CANARY_FAILURES = 3
"""Requests that a canary had no answer to, after which it ends."""
WAITING_ROWS = 200_000
"""Answers of an experiment that may wait for their label; the oldest give way."""
_LOOK_S = 1.0
_IDLE_LOOK_S = 5.0
_MEASURE_S = 2.0
_POLL_ROWS = 500
_LABELS_WAITING, _LABEL_ATTEMPTS = 10_000, 10
_PROCESS_ENDS = 3
"""A shadow's process that ends so often without an answer in between is not started again."""

_ANSWERS = EXPERIMENT_ANSWERS.c
_log = logging.getLogger(__name__)


def follow(settings: Settings, status: LoopStatus, stop: threading.Event) -> None:
    """Follow every application's experiments until told to stop. Raises: NotReady; `Loop` calls it again then."""
    platform = mysql.engine(settings, "platform")
    followed: dict[str, _Followed] = {}
    with ExitStack() as all_of_them:
        while not stop.is_set():
            said = {}
            for name in settings.applications:
                with mysql.mysql_errors(), platform.connect() as connection:
                    running = experiment_store.running(connection, name)
                known = followed.get(name)
                if known is not None and (running is None or running.number != known.experiment.number):
                    followed.pop(name).close()
                if running is None:
                    continue
                try:
                    if name not in followed:
                        followed[name] = _Followed(settings, running)
                        all_of_them.callback(followed[name].close)
                    followed[name].turn()
                    said[f"({name})"] = running.name
                except NotReady:
                    raise
                except Exception as exc:  # another application's experiment goes on
                    _log.exception("the %s was not followed", running.name)
                    said[f"({name})"] = in_one_line(exc)
            status.working(**said)
            stop.wait(_LOOK_S if followed else _IDLE_LOOK_S)


class _Label(NamedTuple):
    """attempts: how often its event's answers have been looked for."""

    event_id: str
    label: str
    attempts: int = 0


class _Followed:
    """One experiment, while it runs."""

    def __init__(self, settings: Settings, experiment: Experiment) -> None:
        self.experiment = experiment
        self._settings, self._platform = settings, mysql.engine(settings, "platform")
        self._labels: deque[_Label] = deque(maxlen=_LABELS_WAITING)
        self._process: subprocess.Popen[bytes] | None = None
        self._process_ends, self._measured_s = 0, 0.0
        name = experiment.application
        with mysql.mysql_errors(), self._platform.connect() as connection:
            card = registry.published_card(connection, name, experiment.champion)
        self._criterion = Criterion.of(load_code(ObjectStore(settings), settings, card).application)
        answers = topics.shadow_predictions(name) if experiment.kind == "shadow" else topics.predictions(name)
        self._takes = {answers: self._answers, topics.labels(name): self._take_labels, topics.LIFECYCLE: self._failures}
        self._reader = kafka.consumer(
            settings, *self._takes, group=f"deeplambda.experiments.{name}.{experiment.number}"
        )
        with kafka.kafka_errors(settings):
            begin_at(self._reader, experiment)

    def close(self) -> None:
        """End its process and disconnect."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._reader.close()

    def turn(self) -> None:
        """Take what has come, and see whether that decides. Raises: NotReady."""
        if self.experiment.kind == "shadow" and not self._process_lives():
            return
        with kafka.kafka_errors(self._settings):
            while polled := self._reader.poll(0, _POLL_ROWS):
                for partition, records in polled.items():
                    self._takes[partition.topic](records)
                self._reader.commit()
                if time.monotonic() - self._measured_s > _MEASURE_S:
                    break
        if time.monotonic() - self._measured_s > _MEASURE_S:
            self._label([self._labels.popleft() for _ in range(len(self._labels))])
            self._measure()
            self._measured_s = time.monotonic()

    def _process_lives(self) -> bool:
        """Start a shadow's process, or see that it lives; False once it has ended too often."""
        if self._process is not None and self._process.poll() is None:
            return True
        if self._process is not None:
            self._process_ends += 1
            said = f"its process ended {self._process_ends} times, the last time with {self._process.returncode}"
            _log.warning("%s: %s", self.experiment.name, said)
            if self._process_ends >= _PROCESS_ENDS:
                self._end("failed", f"{said}; see 'deeplambda logs archive'")
                return False
        command = ["-m", "batch_layer.shadow", self.experiment.application, str(self.experiment.number)]
        self._process = subprocess.Popen([sys.executable, *command])
        return True

    def _answers(self, records: Iterable[Any]) -> None:
        """Take records of `<application>.shadow-predictions`, or of `<application>.predictions`."""
        rows, shed = [], 0
        for record in records:
            with suppress(ValidationError):
                if self.experiment.kind == "canary":
                    rows += self._of_canary(Prediction.model_validate_json(record.value or b""))
                    continue
                found = SHADOW_RECORD.validate_json(record.value or b"")
                if found.experiment == self.experiment.number:
                    if isinstance(found, ShadowShed):
                        shed += found.rows
                    else:
                        rows.append(_row(found.event_id, found.candidate, found.champion, found.error, found.at))
                        self._process_ends = 0
        if rows or shed:
            of_it = {"application": self.experiment.application, "experiment": self.experiment.number}
            with mysql.mysql_errors(), self._platform.begin() as connection:
                if rows:
                    connection.execute(insert(EXPERIMENT_ANSWERS).prefix_with("IGNORE"), [row | of_it for row in rows])
                if shed:
                    self.experiment = experiment_store.measured(
                        connection, self.experiment, shed=self.experiment.shed + shed
                    )

    def _of_canary(self, made: Prediction) -> list[dict[str, Any]]:
        """The row of a canary's answer, or of the champion's that it is compared with."""
        known = self.experiment
        answer = Said(version=made.model_version, prediction=made.prediction, value=made.value)
        if made.model_version == known.version:
            return [_row(made.event_id, answer, None, None, made.predicted_at)]
        is_control = known.share <= point(known.number, made.event_id) < (1 + CONTROLS) * known.share
        if made.model_version == known.champion and is_control:
            return [_row(made.event_id, None, answer, None, made.predicted_at)]
        return []

    def _failures(self, records: Iterable[Any]) -> None:
        """Take records of `deeplambda.lifecycle`, as far as they are of a canary that failed."""
        for record in records:
            with suppress(ValidationError):
                failed = ChallengerFailed.model_validate_json(record.value or b"")
                if (failed.application, failed.number) != (self.experiment.application, self.experiment.number):
                    continue
                figures = {"failed": self.experiment.failed + 1, "failure": f"{failed.part}: {failed.reason}"}
                with mysql.mysql_errors(), self._platform.begin() as connection:
                    self.experiment = experiment_store.measured(connection, self.experiment, **figures)

    def _take_labels(self, records: Iterable[Any]) -> None:
        self._label([label for record in records if (label := _label(record)) is not None])

    def _label(self, labels: Sequence[_Label]) -> None:
        """Score answers by their labels; a label whose event has no answer yet waits a while."""
        if not labels:
            return
        of_it = _of(self.experiment)
        with mysql.mysql_errors(), self._platform.begin() as connection:
            rows = select(EXPERIMENT_ANSWERS).where(of_it, _ANSWERS.event_id.in_([each.event_id for each in labels]))
            found = {row.event_id: row for row in connection.execute(rows)}
            for each in labels:
                if (row := found.pop(each.event_id, None)) is None:
                    if each.attempts < _LABEL_ATTEMPTS:
                        self._labels.append(each._replace(attempts=each.attempts + 1))
                elif row.label is None:
                    connection.execute(
                        update(EXPERIMENT_ANSWERS).where(_ANSWERS.id == row.id).values(_scored(row, each.label))
                    )

    def _measure(self) -> None:
        """Note the figures, and end what is decided."""
        with mysql.mysql_errors(), self._platform.begin() as connection:
            figures = _figures(connection, self.experiment, self._criterion)
            self.experiment = experiment_store.measured(connection, self.experiment, **figures)
            _forget_oldest(connection, self.experiment)
        known = self.experiment
        if known.kind == "canary" and known.failed >= CANARY_FAILURES:
            self._end("failed", f"{known.failed} requests had no answer of it, the last: {known.failure}")
        elif known.until_decided and (decided := decision(known, self._criterion)) is not None:
            self._decide(*decided)
        elif (known.labels_limit and known.labelled >= known.labels_limit) or (known.until and now() >= known.until):
            said = in_words(known.comparison) if known.comparison else "no label has come"
            self._end("undecided", f"its labels do not tell: {said}")

    def _decide(self, state: str, reason: str) -> None:
        known = self.experiment
        before = known.verdict or Verdict(version=known.version)
        verdict = before.model_copy(
            update={
                "reasons": [reason] if state == "rejected" else [],
                "comparisons": [*before.comparisons, *([known.comparison] if known.comparison else [])],
            }
        )
        taken = registry.Decision(who=f"{known.kind} {known.number}", why=known.why, verdict=verdict, experiment=known)
        with suppress(Conflict):  # a person was quicker
            if state == "promoted":
                registry.promote(self._platform, known.application, known.version, taken)
            else:
                registry.reject(self._platform, known.application, known.version, reason, taken)
        _log.info("%s: version %d %s: %s", known.name, known.version, state, reason)

    def _end(self, state: experiment_store.State, reason: str) -> None:
        with suppress(Conflict), mysql.mysql_errors(), self._platform.begin() as connection:
            experiment_store.still_runs(connection, self.experiment)
            experiment_store.end(connection, self.experiment, state, reason)
        _log.warning("%s: %s: %s", self.experiment.name, state, reason)


def _of(experiment: Experiment) -> Any:
    return (_ANSWERS.application == experiment.application) & (_ANSWERS.experiment == experiment.number)


def _row(
    event_id: str, candidate: Said | None, champion: Said | None, error: str | None, at: datetime
) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "candidate": candidate.prediction if candidate else None,
        "candidate_value": candidate.value if candidate else None,
        "champion": champion.prediction if champion else None,
        "champion_value": champion.value if champion else None,
        "error": error,
        "at": at.astimezone(UTC),
    }


def _scored(row: Any, label: str) -> dict[str, Any]:
    """An answer's columns once its label is known. A candidate without an answer was wrong."""
    scores = {"candidate_score": _score(row.candidate, row.candidate_value, label)}
    scores["champion_score"] = _score(row.champion, row.champion_value, label)
    if row.error is not None and row.champion_value is None:
        scores["candidate_score"] = 0.0
    return {"label": label[:255], **scores}


def _score(prediction: str | None, value: float | None, label: str) -> float | None:
    if prediction is None:
        return None
    if value is None:
        return float(prediction == label)
    try:
        return -abs(value - float(label))
    except ValueError:
        return None


def _figures(connection: Connection, experiment: Experiment, criterion: Criterion) -> dict[str, Any]:
    """An experiment's figures, by its rows of `experiment_answers`."""
    ours, theirs = _ANSWERS.candidate_score, _ANSWERS.champion_score
    sums = [column for score in (ours, theirs, ours - theirs) for column in _sums(score)]
    query = select(
        func.count(_ANSWERS.candidate),
        func.sum(_ANSWERS.candidate == _ANSWERS.champion),
        func.count(_ANSWERS.error),
        func.max(_ANSWERS.candidate_value.is_not(None) | _ANSWERS.champion_value.is_not(None)),
        *sums,
    ).where(_of(experiment))
    answered, agreed, failed, numbers, *rest = connection.execute(query).one()
    candidate, champion, paired = (
        Scores(rows=rows, total=total or 0.0, squares=squares or 0.0, above=int(above or 0), below=int(below or 0))
        for rows, total, squares, above, below in (rest[n : n + 5] for n in (0, 5, 10))
    )
    found = Labelled(candidate=candidate, champion=champion, paired=paired, numbers=bool(numbers))
    figures: dict[str, Any] = {"answered": answered, "labelled": found.rows}
    if experiment.kind == "shadow":
        last = select(_ANSWERS.error).where(_of(experiment), _ANSWERS.error.is_not(None)).order_by(_ANSWERS.id.desc())
        figures |= {
            "agreed": int(agreed or 0),
            "failed": failed,
            "failure": connection.scalar(last.limit(1)) if failed else None,
        }
    if found.rows:
        figures["comparison"] = compared(found, experiment.kind, experiment.champion, criterion)
    return figures


def _sums(score: Any) -> list[Any]:
    return [func.count(score), func.sum(score), func.sum(score * score), func.sum(score > 0), func.sum(score < 0)]


def _forget_oldest(connection: Connection, experiment: Experiment) -> None:
    """Delete the oldest answers that still wait for a label, where too many do."""
    waiting = _of(experiment) & _ANSWERS.label.is_(None)
    oldest = select(_ANSWERS.id).where(waiting).order_by(_ANSWERS.id.desc()).offset(WAITING_ROWS).limit(1)
    if (last := connection.scalar(oldest)) is not None:
        connection.execute(delete(EXPERIMENT_ANSWERS).where(waiting, _ANSWERS.id <= last))


def _label(record: Any) -> _Label | None:
    """The label in a record; None where there is none."""
    try:
        given = from_json(record.value or b"")
    except ValueError:
        return None
    if not isinstance(given, dict) or given.get("label") is None:
        return None
    event_id = given.get("event_id") or (record.key or b"").decode(errors="replace")
    return _Label(str(event_id), str(given["label"])) if event_id else None
