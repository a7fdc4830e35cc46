"""Scoring a batch of event records: each becomes either a prediction or a dead letter."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from deeplambda.adapters.model_service import ModelClient, OtherFeatures
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput, InvalidEvent
from deeplambda.features import chosen, row_bytes
from deeplambda.records import topics
from deeplambda.records.admission import Admitted, admit
from deeplambda.records.answers import answers
from deeplambda.records.dead_letters import DeadLetter
from deeplambda.records.decoding import Reason, RefusedEvent
from deeplambda.records.featurizer import Featurizer
from deeplambda.records.isolation import halved
from deeplambda.records.predictions import Prediction, slices_of
from deeplambda.service.champion_code import ChampionCode

Record = tuple[str, bytes, bytes]
"""Topic, key and value."""
RECORDS = pa.schema([("topic", pa.string()), ("key", pa.binary()), ("value", pa.binary())])
_PATIENCE_S = 60.0
_FIRST_PASS_ROWS = 64
_PASS_BYTES = 32 * 1024 * 1024
"""Of features that are held at once: an event of a few bytes may become a large tensor."""


class Scorer:
    """Turns one application's records into predictions and dead letters, with the code of the version that serves.

    One lives in each process that scores, for the life of the process: it keeps the connection to the model service
    and the code that was last asked for. hops_ms: time that went by in each hop, which whoever reads it sets to zero.
    replays: whether its predictions are of events that were scored before.
    """

    def __init__(self, settings: Settings, name: str, *, replays: bool = False) -> None:
        self._settings, self._name, self._replays = settings, name, replays
        self._client = ModelClient(settings, name)
        self._code = ChampionCode(settings, name, self._client, patience_s=_PATIENCE_S)
        self._pass_rows = _FIRST_PASS_ROWS
        self.hops_ms: defaultdict[str, float] = defaultdict(float)

    def records(self, rows: list[dict[str, Any]]) -> list[Record]:
        """What becomes of rows of Spark's Kafka source: a record for each.

        However long the culprits among them take to be found, they are: a batch given up would only be tried again.
        Raises: NotReady when the model service stays away, or no champion was ever promoted.
        """
        out: list[Record] = []
        done = 0
        while done < len(rows):
            piece = rows[done : done + self._pass_rows]
            out += self._pass(piece)
            done += len(piece)
        return out

    def _pass(self, rows: list[dict[str, Any]]) -> list[Record]:
        """Score what is held at once.

        1. check and transform every event with the code of the champion, as far as it is known
        2. have the model service score the features, naming that code
        3. where the model takes features of other code or learned state, load those and begin again; where no event
           passed the code that is known, ask whether that is still the champion's
        4. where the model has no answer for some rows, halve the batch until they stand alone
        """
        keyed = [(row["key"], row["value"]) for row in rows]
        while True:
            featurizer = self._code.current()
            started_s = time.perf_counter()
            admitted = admit(featurizer, keyed, limit_bytes=self._settings.event_limit_bytes, within_s=math.inf)
            self.hops_ms["transform"] += (time.perf_counter() - started_s) * 1e3
            if admitted.events_N:
                self._pass_rows = max(1, _PASS_BYTES // max(1, row_bytes(admitted.features)))
            if not admitted.events_N and self._code.renew():
                continue
            out = [dead_letter(self._name, rows[n], refusal, self._code.version) for n, refusal in admitted.refused]
            try:
                return out + self._scored(featurizer, rows, admitted)
            except OtherFeatures as other:
                self._code.load(other.model_version)

    def _scored(self, featurizer: Featurizer, rows: list[dict[str, Any]], admitted: Admitted) -> list[Record]:
        started = time.perf_counter()
        found = halved(
            lambda piece: self._client.predict(chosen(admitted.features, piece), featurizer.id),
            len(admitted.events_N),
            InvalidEvent,
            within_s=math.inf,
        )
        inference_ms = (time.perf_counter() - started) * 1e3
        self.hops_ms["model"] += inference_ms
        refused: dict[int, BadInput] = dict(found.refused)
        out = []
        for piece, scored in found.pieces:
            answered, predicted_at = answers(featurizer.application.objective, scored.outputs), now()
            refused |= {piece.start + n: refusal for n, refusal in answered.refused.items()}
            for answer, n in enumerate(answered.rows_N):
                event, row = admitted.events_N[piece.start + n], rows[admitted.rows_N[piece.start + n]]
                try:
                    prediction = Prediction(
                        application=self._name,
                        event_id=event.event_id,
                        kafka_partition=row["partition"],
                        kafka_offset=row["offset"],
                        occurred_at=event.occurred_at,
                        received_at=row["timestamp"],
                        predicted_at=predicted_at,
                        model_version=int(scored.versions_N[n]),
                        prediction=answered.values_N[answer],
                        confidence=float(answered.confidence_N[answer]),
                        value=answered.numbers_N[answer],
                        scores=answered.scores_N[answer],
                        inference_ms=inference_ms,
                        code_version=featurizer.code_version,
                        slices=slices_of(featurizer.application, event),
                        replayed=self._replays,
                    )
                except ValidationError as exc:
                    refused[piece.start + n] = BadInput(exc.errors(include_url=False)[0]["msg"])
                else:
                    key = event.event_id.encode()
                    out.append((topics.predictions(self._name), key, prediction.model_dump_json().encode()))
        return out + [
            dead_letter(
                self._name,
                rows[admitted.rows_N[n]],
                RefusedEvent(refusal.message, refusal.remedy, Reason.MODEL_FAILED),
                self._code.version,
            )
            for n, refusal in refused.items()
        ]


@lru_cache(maxsize=64)
def _scorer(settings: Settings, name: str) -> Scorer:
    return Scorer(settings, name)


def scoring(settings: Settings, name: str) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """A function for `mapInArrow`: rows of Spark's Kafka source in, records for its Kafka sink out.

    The router calls it in the driver, Spark in the workers. Raises: NotReady, after which Spark tries the batch again,
    when the model service does not answer.
    """

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        scorer = _scorer(settings, name)
        for batch in batches:
            out = scorer.records(batch.to_pylist())
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, field.type) for column, field in zip(zip(*out, strict=True), RECORDS, strict=True)],
                schema=RECORDS,
            )

    return score


def dead_letter(application: str, row: dict[str, Any], refusal: RefusedEvent, model_version: int | None) -> Record:
    letter = DeadLetter.of_record(
        application=application,
        reason=refusal.reason,
        detail=str(refusal),
        topic=row["topic"],
        partition=row["partition"],
        offset=row["offset"],
        received_at=row["timestamp"],
        key=row["key"],
        value=row["value"],
        model_version=model_version,
    )
    return topics.dead_letters(application), letter.record_key.encode(), letter.model_dump_json().encode()
