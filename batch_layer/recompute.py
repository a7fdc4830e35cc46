"""Recompute: the champion's predictions over the whole archive, and the horizon moved up to where it reaches.

1. Pin the archive's snapshot; the horizon is, by partition, one past its last offset. The archive takes each
   partition's events in order, so all offsets before that are in it.
2. Spark scores every archived event that passes the gate the stream uses; of an event sent twice the first copy counts.
3. One Iceberg commit overwrites `predictions`: a new snapshot, which no view shows yet.
4. One MySQL transaction makes that snapshot and its horizon the visible ones, and writes the event that says so.
A crash before 4 changes nothing that anybody sees. Real-time rows before the horizon are trimmed later, by the views.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.lake import create_tables, current_snapshot, read_snapshot
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput, InvalidEvent
from deeplambda.features import Features, call, chosen, row_count
from deeplambda.loading import PackedApplication
from deeplambda.objective import Objective
from deeplambda.records.admission import admit
from deeplambda.records.answers import Answers, answers, finite
from deeplambda.records.isolation import halved
from deeplambda.records.lifecycle import BatchViewPublished
from deeplambda.records.predictions import VIEW_SCHEMA, scores_text
from deeplambda.state import outbox, registry
from deeplambda.state.card import Card
from deeplambda.state.horizon_store import move_horizon
from deeplambda.state.versions import LoadedCode, fetch_model, load_code

if TYPE_CHECKING:
    import torch


def recompute(spark: SparkSession, settings: Settings, packed: PackedApplication) -> BatchViewPublished:
    """Make a new batch view and move the horizon. Raises: BadInput when there is nothing to score or no champion."""
    started = time.monotonic()
    engine = mysql.engine(settings, "platform")
    create_tables(spark, packed.load())
    with mysql.named_lock(engine, f"deeplambda.{packed.name}.recompute"):
        with engine.connect() as connection:
            champion = registry.champion(connection, packed.name)
        if champion is None:
            raise BadInput(f"{packed.name} has no champion", f"run 'deeplambda model promote {packed.name}' first")
        archive, view = f"lake.{packed.name}.events", f"lake.{packed.name}.predictions"
        pinned = current_snapshot(spark, archive)
        if pinned is None:
            raise BadInput(f"{archive} is empty", "send events first; the archive takes them within seconds")
        events = read_snapshot(spark, archive, pinned)
        offsets = {
            row.kafka_partition: row.horizon
            for row in events.groupBy("kafka_partition").agg((F.max("kafka_offset") + 1).alias("horizon")).collect()
        }
        _first_copies(_scored(settings, champion, events)).writeTo(view).overwrite(F.lit(True))
        snapshot = current_snapshot(spark, view)
        if snapshot is None:
            raise BadInput(f"no archived event of {packed.name} can be scored", "see its dead letters")
        published = BatchViewPublished(
            application=packed.name,
            snapshot=snapshot,
            events_snapshot=pinned,
            version=champion.version,
            offsets=offsets,
            rows=read_snapshot(spark, view, snapshot).count(),
            duration_s=time.monotonic() - started,
        )
        with mysql.mysql_errors(), engine.begin() as connection:
            move_horizon(connection, published)
    with Publisher(settings) as publisher:
        outbox.relay(engine, publisher)
    return published


def _scored(settings: Settings, champion: Card, events: DataFrame) -> DataFrame:
    # The id as bytes: the archive keeps a key as it came, and one that is no UTF-8 could not be read as text.
    inputs = events.select(
        F.col("event_id").cast("binary").alias("event_id"), "kafka_partition", "kafka_offset", "value"
    )
    return inputs.mapInArrow(_scoring(settings, champion), from_arrow_schema(VIEW_SCHEMA))


def _first_copies(scored: DataFrame) -> DataFrame:
    """One row for each event: its first position."""
    first = F.min_by(F.struct(*VIEW_SCHEMA.names), "kafka_offset").alias("first")
    return scored.groupBy("event_id").agg(first).select("first.*")


@lru_cache(maxsize=2)
def _loaded(settings: Settings, champion_json: str) -> "tuple[LoadedCode, torch.nn.Module]":
    """The champion's code and model, kept by the worker between tasks."""
    import torch

    torch.set_num_threads(1)  # Spark already runs a task on each core
    store, champion = ObjectStore(settings), Card.model_validate_json(champion_json)
    code = load_code(store, settings, champion)
    return code, fetch_model(store, code.application, champion)


def _scoring(settings: Settings, champion: Card) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    champion_json, version = champion.model_dump_json(), champion.version

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        code, model = _loaded(settings, champion_json)
        for batch in batches:
            inputs = batch.to_pylist()
            records = [(None if row["event_id"] is None else bytes(row["event_id"]), row["value"]) for row in inputs]
            admitted = admit(code.featurizer, records, limit_bytes=settings.event_limit_bytes)
            if not admitted.events_N:
                continue  # what was refused has its dead letter from the stream
            answered = _answered(model, code.application.objective, admitted.features)
            rows = [inputs[admitted.rows_N[n]] for n in answered.rows_N]
            events = [admitted.events_N[n] for n in answered.rows_N]
            columns = (
                [event.event_id for event in events],
                [row["kafka_partition"] for row in rows],
                [row["kafka_offset"] for row in rows],
                [event.occurred_at for event in events],
                [now()] * len(events),
                [version] * len(events),
                answered.values_N,
                answered.confidence_N,
                answered.numbers_N,
                [scores_text(scores) for scores in answered.scores_N],
            )
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array(values, field.type, from_pandas=True)  # NaN, an objective's "I have none", is NULL
                    for field, values in zip(VIEW_SCHEMA, columns, strict=True)
                ],
                schema=VIEW_SCHEMA,
            )

    return score


def _answered(model: "torch.nn.Module", objective: Objective, features: Features) -> Answers:
    """The rows for which the model has an answer. The others have their dead letters from the stream, as those have
    whose transform fails."""
    import torch

    def attempt(piece: slice) -> NDArray[np.float32]:
        tensors = {name: torch.from_numpy(array) for name, array in chosen(features, piece).items()}
        try:
            with torch.inference_mode():
                return call(model, tensors).float().numpy()  # type: ignore[no-any-return]
        except Exception as exc:  # a user's model may raise anything, on values that training has not seen
            raise InvalidEvent(f"the model raised {type(exc).__name__}") from exc

    found = halved(attempt, row_count(features), InvalidEvent)
    if not found.pieces:
        return answers(objective, np.zeros((0, objective.output_size), np.float32))
    outputs = np.concatenate([piece for _, piece in found.pieces])
    kept = np.flatnonzero(finite(outputs))
    answered = answers(objective, outputs[kept])
    return replace(answered, rows_N=[found.rows[kept[row]] for row in answered.rows_N])
