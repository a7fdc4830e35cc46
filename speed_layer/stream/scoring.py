"""Scoring a batch of event records: each becomes either a prediction or a dead letter."""

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa

from deeplambda.adapters.model_service import ModelClient, OtherFeatures
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.objective import decoded
from deeplambda.records import topics
from deeplambda.records.admission import Admitted, admit
from deeplambda.records.dead_letters import DeadLetter
from deeplambda.records.decoding import Reason, RefusedEvent
from deeplambda.records.featurizer import Featurizer
from deeplambda.records.predictions import Prediction
from deeplambda.service.champion_code import ChampionCode

Record = tuple[str, bytes, bytes]
"""Topic, key and value."""
RECORDS = pa.schema([("topic", pa.string()), ("key", pa.binary()), ("value", pa.binary())])
_PATIENCE_S = 60.0


class Scorer:
    """Turns one application's records into predictions and dead letters, with the code of the version that serves.

    One lives in each process that scores, for the life of the process: it keeps the connection to the model service
    and the code that was last asked for.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, name
        self._client = ModelClient(settings, name)
        self._code = ChampionCode(settings, name, self._client, patience_s=_PATIENCE_S)

    def records(self, rows: list[dict[str, Any]]) -> list[Record]:
        """What becomes of rows of Spark's Kafka source: a record for each.

        1. check and transform every event with the code of the champion, as far as it is known
        2. have the model service score the features, naming that code
        3. where the model takes features of other code or learned state, load those and begin again
        4. where the service refuses features, halve the batch until the events to blame stand alone
        Raises: NotReady when the model service stays away, or no champion was ever promoted.
        """
        keyed = [(row["key"], row["value"]) for row in rows]
        while True:
            featurizer = self._code.current()
            admitted = admit(featurizer, keyed, limit_bytes=self._settings.event_limit_bytes)
            out = [dead_letter(self._name, rows[n], refusal) for n, refusal in admitted.refused]
            try:
                return out + self._scored(featurizer, rows, admitted)
            except OtherFeatures as other:
                self._code.load(other.model_version)

    def _scored(self, featurizer: Featurizer, rows: list[dict[str, Any]], admitted: Admitted) -> list[Record]:
        if not admitted.events_N:
            return []
        started = time.perf_counter()
        try:
            scored = self._client.predict(admitted.features, featurizer.id)
            predictions = decoded(featurizer.application.objective, scored.outputs)
        except BadInput as refusal:
            count = len(admitted.events_N)
            if count == 1:
                refused = RefusedEvent(refusal.message, refusal.remedy, Reason.MODEL_FAILED)
                return [dead_letter(self._name, rows[admitted.rows_N[0]], refused)]
            halves = (slice(0, count // 2), slice(count // 2, count))
            return [record for half in halves for record in self._scored(featurizer, rows, admitted.some(half))]
        inference_ms = (time.perf_counter() - started) * 1e3
        topic, predicted_at = topics.predictions(self._name), now()
        out = []
        for i, (n, event) in enumerate(zip(admitted.rows_N, admitted.events_N, strict=True)):
            row = rows[n]
            prediction = Prediction(
                application=self._name,
                event_id=event.event_id,
                kafka_partition=row["partition"],
                kafka_offset=row["offset"],
                occurred_at=event.occurred_at,
                received_at=row["timestamp"],
                predicted_at=predicted_at,
                model_version=scored.model_version,
                prediction=predictions.values[i],
                confidence=float(predictions.confidence_N[i]),
                value=predictions.number(i),
                scores=predictions.scores_of(i),
                inference_ms=inference_ms,
                code_version=featurizer.code_version,
            )
            out.append((topic, event.event_id.encode(), prediction.model_dump_json().encode()))
        return out


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


def dead_letter(application: str, row: dict[str, Any], refusal: RefusedEvent) -> Record:
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
    )
    return topics.dead_letters(application), letter.record_key.encode(), letter.model_dump_json().encode()
