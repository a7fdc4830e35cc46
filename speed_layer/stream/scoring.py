"""Scoring a batch of event records: each becomes either a prediction or a dead letter."""

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa

from deeplambda.adapters.model_service import ModelClient
from deeplambda.application import Application
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.loading import PackedApplication
from deeplambda.records import topics
from deeplambda.records.admission import Admitted, admit
from deeplambda.records.dead_letters import DeadLetter
from deeplambda.records.decoding import RefusedEvent
from deeplambda.records.predictions import Prediction

RECORDS = pa.schema([("topic", pa.string()), ("key", pa.binary()), ("value", pa.binary())])


@lru_cache(maxsize=4)
def _client(settings: Settings, application: str) -> ModelClient:
    """One keep-alive connection pool for the life of the worker."""
    return ModelClient(settings, application)


def scoring(
    settings: Settings, packed: PackedApplication
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """A function for `mapInArrow`: rows of Spark's Kafka source in, records for its Kafka sink out.

    The router calls it in the driver, Spark in the workers. Raises: NotReady, after which Spark tries the batch again,
    when the model service does not answer.
    """

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        application, client = packed.load(), _client(settings, packed.name)
        for batch in batches:
            rows = batch.to_pylist()
            records = [(row["key"], row["value"]) for row in rows]
            admitted = admit(application, records, limit_bytes=settings.event_limit_bytes)
            out = [_dead_letter(packed.name, rows[n], refusal) for n, refusal in admitted.refused]
            if admitted.events_N:
                out += _predictions(packed, application, client, rows, admitted)
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, field.type) for column, field in zip(zip(*out, strict=True), RECORDS, strict=True)],
                schema=RECORDS,
            )

    return score


def _predictions(
    packed: PackedApplication,
    application: Application,
    client: ModelClient,
    rows: list[dict[str, Any]],
    admitted: Admitted,
) -> Iterator[tuple[str, bytes, bytes]]:
    started = time.perf_counter()
    scored = client.predict(admitted.features)
    inference_ms = (time.perf_counter() - started) * 1e3
    decoded = application.objective.decode(scored.outputs)
    topic, predicted_at = topics.predictions(packed.name), now()
    for n, event, value, confidence in zip(
        admitted.rows_N, admitted.events_N, decoded.values, decoded.confidence_N.tolist(), strict=True
    ):
        row = rows[n]
        record = Prediction(
            application=packed.name,
            event_id=event.event_id,
            kafka_partition=row["partition"],
            kafka_offset=row["offset"],
            occurred_at=event.occurred_at,
            received_at=row["timestamp"],
            predicted_at=predicted_at,
            model_version=scored.model_version,
            prediction=value,
            confidence=confidence,
            inference_ms=inference_ms,
            code_version=packed.code_version,
        )
        yield topic, event.event_id.encode(), record.model_dump_json().encode()


def _dead_letter(application: str, row: dict[str, Any], refusal: RefusedEvent) -> tuple[str, bytes, bytes]:
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
