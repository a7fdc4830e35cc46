"""Shadow: a candidate answers live events after the champion has, in a process of its own.

`python -m batch_layer.shadow APPLICATION NUMBER`; `batch_layer/experiments.py` starts it and looks after it. Nobody
waits for it: it reads from Kafka what the champion said, so whatever the candidate does, raise, hang or take all
memory, no answer is touched.

1. Take predictions of the champion from `<application>.predictions`, and their events by their positions.
2. Check and transform the events with the candidate's own code, and run its model.
3. Write both answers to `<application>.shadow-predictions`; only then commit how far it has read.
4. Rest until no more than its share of a core is taken. What has come meanwhile beyond `BEHIND_ROWS` is shed, and
   counted.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from deeplambda.adapters import kafka, mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.kafka_ranges import RangeReader
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings, load_settings
from deeplambda.errors import BadInput, NotReady
from deeplambda.features import Features, call
from deeplambda.records import topics
from deeplambda.records.admission import admit
from deeplambda.records.answers import answered
from deeplambda.records.experiments import Said, ShadowAnswered, ShadowShed
from deeplambda.records.predictions import Prediction
from deeplambda.service.logs import log_to_stderr
from deeplambda.state import experiment_store, registry
from deeplambda.state.experiment_store import Experiment
from deeplambda.state.versions import fetch_model, load_code

BEHIND_ROWS = 1_000
"""How many predictions may wait for it."""
_POLL_ROWS = 200
_SPREAD_ROWS = 5_000
"""Of a partition's positions in one turn: what is sent again from long before would have all between read as well."""
_TURN_LIMIT_S = 120
"""After so long without an end of a turn the process ends: the candidate hangs."""
_RETRY_S = 2.0

_log = logging.getLogger("batch_layer.shadow")


class Candidate:
    """A version, loaded to answer events. Raises when made: BadInput, CorruptObject, NotReady, UnfitModel."""

    def __init__(self, settings: Settings, application: str, version: int) -> None:
        store = ObjectStore(settings)
        with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
            card = registry.published_card(connection, application, version)
        self.version, self._limit_bytes = version, settings.event_limit_bytes
        self._featurizer = load_code(store, settings, card).featurizer
        self._model = fetch_model(store, self._featurizer.application, card)

    def answers(self, events: Sequence[tuple[bytes | None, bytes | None]]) -> list[Said | str]:
        """Of each event, what the candidate says, or why it has no answer. events: keys and values."""
        out: list[Said | str] = ["it gave no answer"] * len(events)
        try:
            admitted = admit(self._featurizer, events, limit_bytes=self._limit_bytes)
            found = answered(self._outputs, self._featurizer.application.objective, admitted.features)
        except BadInput as exc:  # too many that fail to tell them apart
            return [exc.message] * len(events)
        for n, refusal in admitted.refused:
            out[n] = refusal.message
        for n, failure in found.refused.items():
            out[admitted.rows_N[n]] = failure.message
        for n, row in enumerate(found.rows_N):
            confidence = float(found.confidence_N[n])
            out[admitted.rows_N[row]] = Said(
                version=self.version,
                prediction=found.values_N[n],
                confidence=None if np.isnan(confidence) else confidence,
                value=found.numbers_N[n],
            )
        return out

    def _outputs(self, features: Features) -> NDArray[np.float32]:
        with torch.inference_mode():
            outputs = call(self._model, {name: torch.from_numpy(array) for name, array in features.items()})
        return outputs.float().numpy()  # type: ignore[no-any-return]


class Shadow:
    """One experiment's turns, on one thread."""

    def __init__(self, settings: Settings, experiment: Experiment, candidate: Candidate, publisher: Publisher) -> None:
        self._settings, self._experiment, self._candidate = settings, experiment, candidate
        self._publisher = publisher
        name = experiment.application
        self._topic = topics.shadow_predictions(name)
        self._reader = kafka.consumer(settings, topics.predictions(name), group=group(experiment))
        self._events = RangeReader(settings, topics.events(name))
        with kafka.kafka_errors(settings):
            kafka.begin_at(self._reader, experiment.started_at)

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()
        self._events.close()

    def turn(self) -> None:
        """Answer what is there, and wait up to a second where nothing is. Raises: NotReady."""
        with kafka.kafka_errors(self._settings):
            self._shed()
            polled = self._reader.poll(1_000, _POLL_ROWS)
        begun_s = time.monotonic()
        made = self._of_champion(record for records in polled.values() for record in records)
        if made:
            for answered in self._answered(made):
                self._publisher.send(self._topic, answered.event_id, answered)
        if polled:
            self._publisher.flush()
            with kafka.kafka_errors(self._settings):
                self._reader.commit()
            time.sleep((time.monotonic() - begun_s) * (1 / self._experiment.share - 1))

    def _shed(self) -> None:
        ends = self._reader.end_offsets(self._reader.assignment())
        behind = sum(end - self._reader.position(partition) for partition, end in ends.items())
        if behind > BEHIND_ROWS:
            for partition, end in ends.items():  # and no further: what comes meanwhile is not among those counted
                self._reader.seek(partition, end)
            shed = ShadowShed(application=self._experiment.application, experiment=self._experiment.number, rows=behind)
            self._publisher.send_bytes(self._topic, None, shed.model_dump_json().encode())
            self._publisher.flush()
            self._reader.commit()  # else a process that begins anew sheds, and counts, them again

    def _of_champion(self, records: Iterable[Any]) -> list[Prediction]:
        made = []
        for record in records:
            with suppress(ValidationError):
                prediction = Prediction.model_validate_json(record.value or b"")
                if prediction.model_version == self._experiment.champion and not prediction.replayed:
                    made.append(prediction)
        return made

    def _answered(self, made: Sequence[Prediction]) -> list[ShadowAnswered]:
        events = self._fetched(made)
        found = [(each, events[place]) for each in made if (place := _place(each)) in events]
        answered = self._candidate.answers([(row["key"], row["value"]) for _, row in found])
        return [
            ShadowAnswered(
                application=self._experiment.application,
                experiment=self._experiment.number,
                event_id=prediction.event_id,
                kafka_partition=prediction.kafka_partition,
                kafka_offset=prediction.kafka_offset,
                champion=Said(
                    version=prediction.model_version,
                    prediction=prediction.prediction,
                    confidence=prediction.confidence,
                    value=prediction.value,
                ),
                candidate=answer if isinstance(answer, Said) else None,
                error=None if isinstance(answer, Said) else answer,
            )
            for (prediction, _), answer in zip(found, answered, strict=True)
        ]

    def _fetched(self, made: Sequence[Prediction]) -> dict[tuple[int, int], dict[str, Any]]:
        """Events by their places; without those that are far behind the newest."""
        offsets: dict[int, set[int]] = {}
        for each in made:
            offsets.setdefault(each.kafka_partition, set()).add(each.kafka_offset)
        ranges = {
            partition: (max(min(found), max(found) - _SPREAD_ROWS), max(found) + 1)
            for partition, found in offsets.items()
        }
        wanted = {(partition, offset) for partition, found in offsets.items() for offset in found}
        rows = (row for chunk in self._events.chunks(ranges) for row in chunk)
        return {place: row for row in rows if (place := (row["partition"], row["offset"])) in wanted}


def group(experiment: Experiment) -> str:
    """Under which Kafka keeps how far a reader of the experiment has come."""
    return f"deeplambda.shadow.{experiment.application}.{experiment.number}"


def _place(prediction: Prediction) -> tuple[int, int]:
    return prediction.kafka_partition, prediction.kafka_offset


def main() -> None:
    """Answer until told to stop, or until the process that started this one is gone."""
    log_to_stderr()
    settings, (application, number) = load_settings(), sys.argv[1:]
    os.nice(10)
    with suppress(OSError):  # where memory is short, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(1)
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
        experiment = experiment_store.running(connection, application)
    if experiment is None or experiment.number != int(number):
        return
    candidate: Candidate | None = None
    while True:
        try:
            candidate = candidate or Candidate(settings, application, experiment.version)
            with (
                Publisher(settings) as publisher,
                closing(Shadow(settings, experiment, candidate, publisher)) as shadow,
            ):
                while True:
                    faulthandler.dump_traceback_later(_TURN_LIMIT_S / experiment.share, exit=True)
                    shadow.turn()
        except NotReady as exc:
            _log.warning("%s: %s", experiment.name, exc)
            time.sleep(_RETRY_S)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
