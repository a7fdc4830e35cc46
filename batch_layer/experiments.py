"""Experiments: what a candidate says of live events beside the champion, joined with labels, until that decides. Runs
beside the archive's streams.

1. A running experiment is found in MySQL; a shadow's process is started (`shadow`), and started again where it ends.
2. Kafka's records are taken: a shadow's pairs of answers, or of a canary's predictions the candidate's and a part of
   the champion's, to `experiment_answers`, what it had no answer to as well; labels to the answers that they are of.
   Only then are offsets committed, but for labels that wait for their answer, and what is taken twice is there once.
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
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select, update
from sqlalchemy.dialects.mysql import insert

from batch_layer.criterion import Criterion
from batch_layer.experiment_answers import answer_row, figures, forget_oldest, of_experiment, scored
from batch_layer.live_answers import Label, label_of
from batch_layer.live_verdicts import decision, in_words
from deeplambda.adapters import kafka, mysql
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import Conflict, NoTopic, NotReady
from deeplambda.objective import label_text, shortened
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
LABELS_AT_MOST = 200_000
"""Of an experiment that has no limit of its own."""
CANARY_FAILURES = 3
"""After so many events that the champion has an answer to and a canary has none, the canary ends."""
_LOOK_S = 1.0
_IDLE_LOOK_S = 5.0
_MEASURE_S = 2.0
_POLL_MS, _POLL_ROWS = 100, 500
_LABELS_WAITING, _LABEL_ATTEMPTS = 10_000, 10
_PROCESS_ENDS = 3
"""A shadow's process that ends so often without an answer in between is not started again."""

_ANSWERS = EXPERIMENT_ANSWERS.c
_log = logging.getLogger(__name__)


def follow(settings: Settings, status: LoopStatus, stop: threading.Event) -> None:
    """Follow every application's experiments until told to stop. Raises: NotReady; `Loop` calls it again then."""
    platform = mysql.engine(settings, "platform")
    followed: dict[str, _Followed] = {}
    try:
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
                    followed[name].turn()
                    said[f"({name})"] = running.name
                except NoTopic as exc:
                    said[f"({name})"] = in_one_line(exc)
                except NotReady:
                    raise
                except Exception as exc:  # another application's experiment goes on
                    _log.exception("the %s was not followed", running.name)
                    said[f"({name})"] = in_one_line(exc)
            status.working(**said)
            stop.wait(_LOOK_S if followed else _IDLE_LOOK_S)
    finally:
        for each in followed.values():
            each.close()


class _Followed:
    """One experiment, while it runs."""

    def __init__(self, settings: Settings, experiment: Experiment) -> None:
        self.experiment = experiment
        self._settings, self._platform = settings, mysql.engine(settings, "platform")
        self._labels: deque[Label] = deque(maxlen=_LABELS_WAITING)
        self._process: subprocess.Popen[bytes] | None = None
        self._process_ends, self._measured_s, self._has_news = 0, 0.0, True
        self._answers_come = experiment.kind == "canary"  # a shadow's first have to wait until its process has started
        name = experiment.application
        with mysql.mysql_errors(), self._platform.connect() as connection:
            both = experiment.champion, experiment.version
            cards = [registry.published_card(connection, name, version) for version in both]
        applications = [load_code(ObjectStore(settings), settings, card).application for card in cards]
        self._criterion = Criterion.of(applications[0])
        self._objectives = [application.objective for application in applications]
        answers = topics.shadow_predictions(name) if experiment.kind == "shadow" else topics.predictions(name)
        self._takes = {answers: self._answers, topics.labels(name): self._take_labels, topics.LIFECYCLE: self._failures}
        self._reader = kafka.consumer(
            settings, *self._takes, group=f"deeplambda.experiments.{name}.{experiment.number}"
        )
        with kafka.kafka_errors(settings):
            kafka.begin_at(self._reader, experiment.started_at)

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
            while polled := self._reader.poll(_POLL_MS, _POLL_ROWS):
                for partition, records in polled.items():
                    self._takes[partition.topic](records)
                self._reader.commit_but(label.position for label in self._labels if label.position is not None)
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
        self._process, self._answers_come = subprocess.Popen([sys.executable, *command]), False
        return True

    def _answers(self, records: Iterable[Any]) -> None:
        """Take records of `<application>.shadow-predictions`, or of `<application>.predictions`."""
        rows, shed = [], list[tuple[dict[str, Any], int]]()
        for record in records:
            with suppress(ValidationError):
                if self.experiment.kind == "canary":
                    made = Prediction.model_validate_json(record.value or b"")
                    rows += [] if made.replayed else self._of_canary(made)
                    continue
                found = SHADOW_RECORD.validate_json(record.value or b"")
                if found.experiment == self.experiment.number:
                    if isinstance(found, ShadowShed):
                        # a row of no event, without answers: so that a record which is taken twice counts once
                        key = f"shed-{record.partition}-{record.offset}"
                        shed.append((answer_row(key, None, None, None, found.at), found.rows))
                    else:
                        rows.append(answer_row(found.event_id, found.candidate, found.champion, found.error, found.at))
                        self._process_ends = 0
        self._keep(rows, shed)

    def _keep(self, rows: Sequence[dict[str, Any]], shed: Sequence[tuple[dict[str, Any], int]] = ()) -> None:
        if rows or shed:
            of_it = {"application": self.experiment.application, "experiment": self.experiment.number}
            unless_there = insert(EXPERIMENT_ANSWERS).prefix_with("IGNORE")
            with mysql.mysql_errors(), self._platform.begin() as connection:
                if rows:
                    self._has_news = self._answers_come = True
                    connection.execute(unless_there, [row | of_it for row in rows])
                if new := sum(events for row, events in shed if connection.execute(unless_there, row | of_it).rowcount):
                    self.experiment = experiment_store.measured(
                        connection, self.experiment, shed=self.experiment.shed + new
                    )

    def _of_canary(self, made: Prediction) -> list[dict[str, Any]]:
        """The row of a canary's answer, or of the champion's that it is compared with."""
        known = self.experiment
        answer = Said(version=made.model_version, prediction=made.prediction, value=made.value)
        if made.model_version == known.version:
            return [answer_row(made.event_id, answer, None, None, made.predicted_at)]
        if made.model_version == known.champion and self._counts(made.event_id, beyond=known.share):
            return [answer_row(made.event_id, None, answer, None, made.predicted_at)]
        return []

    def _counts(self, event_id: str, beyond: float = 0.0) -> bool:
        """Whether an event is looked at: of a canary, the candidate's, and beyond those some of the champion's."""
        known = self.experiment
        if known.kind == "shadow":
            return True
        return beyond <= point(known.number, event_id) < (1 + CONTROLS) * known.share

    def _failures(self, records: Iterable[Any]) -> None:
        """Take records of `deeplambda.lifecycle`, as far as they are of a canary that failed."""
        known, rows = self.experiment, []
        for record in records:
            with suppress(ValidationError):
                failed = ChallengerFailed.model_validate_json(record.value or b"")
                if (failed.application, failed.number) == (known.application, known.number):
                    key = failed.event_id or f"{record.partition}-{record.offset}"
                    rows.append(answer_row(key, None, None, f"{failed.part}: {failed.reason}", failed.at))
        self._keep(rows)

    def _take_labels(self, records: Iterable[Any]) -> None:
        found = [label for record in records if (label := label_of(record)) is not None]
        self._label([label for label in found if self._counts(label.event_id)])

    def _label(self, labels: Sequence[Label]) -> None:
        """Score answers by their labels; a label whose event has no answer yet waits a while."""
        if not labels:
            return
        of_it = of_experiment(self.experiment)
        with mysql.mysql_errors(), self._platform.begin() as connection:
            rows = select(EXPERIMENT_ANSWERS).where(of_it, _ANSWERS.event_id.in_([each.event_id for each in labels]))
            found = {row.event_id: row for row in connection.execute(rows)}
            for each in labels:
                if (row := found.pop(each.event_id, None)) is None:
                    if each.attempts < _LABEL_ATTEMPTS:
                        self._labels.append(each._replace(attempts=each.attempts + self._answers_come))
                elif row.label is None and (truth := self._truth(each)) is not None:
                    self._has_news = True
                    connection.execute(
                        update(EXPERIMENT_ANSWERS).where(_ANSWERS.id == row.id).values(scored(row, truth))
                    )

    def _truth(self, label: Label) -> str | None:
        """A label as a prediction is written; None for one that neither version has, which tells nothing of them."""
        for objective in self._objectives:
            with suppress(Exception):  # whatever an objective of the user's own raises
                return shortened(label_text(objective, label.label))
        return None

    def _measure(self) -> None:
        """Note the figures, and end what is decided."""
        if self._has_news:
            with mysql.mysql_errors(), self._platform.begin() as connection:
                found = figures(connection, self.experiment, self._criterion)
                self.experiment = experiment_store.measured(connection, self.experiment, **found)
                forget_oldest(connection, self.experiment)
            self._has_news = False
        known = self.experiment
        if known.kind == "canary" and known.failed >= CANARY_FAILURES:
            self._end("failed", f"it had no answer {known.failed} times, the last: {known.failure}")
        elif known.until_decided and (decided := decision(known, self._criterion)) is not None:
            self._decide(*decided)
        elif known.labelled >= (known.labels_limit or LABELS_AT_MOST) or (known.until and now() >= known.until):
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
