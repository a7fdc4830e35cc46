"""Recompute: the champion's predictions over the whole archive, and the horizon moved up to where it reaches.

1. Pin the archive's snapshot; the horizon is, by partition, one past its last offset. The archive takes each
   partition's events in order, so all offsets before that are in it.
2. Where the visible batch view is the champion's, only what the archive has gained past its horizon is looked at, for
   the version, and so its code, says the same of the rest; else all of it is.
3. Spark scores every such event that nobody has withdrawn and that passes the gate the stream uses; of an event sent
   twice the first copy counts. What was withdrawn since the visible view was made goes from it.
   What is refused, by the gate, by the champion's code or by its model, stands alone and goes to the quarantine.
   All of a large archive is scored span by span, and a run that was killed is taken up: `staged_predictions`.
4. One Iceberg commit adds to `predictions`, or overwrites it: a new snapshot, which no view shows yet.
5. Nothing more happens when too many events would lose the prediction that they have: refused ones, and those that
   the archive lacks.
6. One MySQL transaction makes that snapshot and its horizon the visible ones, if the champion and the view that they
   replace are still what they were, and writes the event that says so.
A crash before 6 changes nothing that anybody sees. Real-time rows before the horizon are trimmed later, by the views.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from batch_layer import refusals
from batch_layer.counted_events import POSITION, counted, withdrawn
from batch_layer.staged_predictions import Staging
from batch_layer.withdrawals import hide_scored_late
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.lake import (
    SNAPSHOT_OPTION,
    bucketed_joins,
    create_tables,
    current_snapshot,
    has_snapshot,
    held,
    read_snapshot,
    snapshot_size,
    written_by,
)
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput, Conflict
from deeplambda.features import Features, call, chosen, row_count
from deeplambda.loading import PackedApplication
from deeplambda.records.admission import admit
from deeplambda.records.answers import answered
from deeplambda.records.decoding import Reason, RefusedEvent
from deeplambda.records.horizon import Horizon
from deeplambda.records.lifecycle import BatchViewPublished
from deeplambda.records.predictions import SEEN_SCHEMA, VIEW_SCHEMA, json_text, slices_of
from deeplambda.state import outbox, registry
from deeplambda.state.card import Card
from deeplambda.state.horizon_store import BatchView, check_forward, move_horizon, read_batch_view
from deeplambda.state.versions import LoadedCode, fetch_model, load_code

if TYPE_CHECKING:
    import torch

_DETAIL_CHARACTERS = 2_000
_MANY_FILES = 200
"""Each run adds some to the batch view; from so many on they are written together."""
_PASS_ROWS = 128
"""Rows of one pass through the model: the activations of more leave the processor's caches. Of the digits CNN 500 rows
take 1.3 times as long each."""
_COPIES_IN_ORDER = ("kafka_timestamp", *POSITION)


def recompute(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    *,
    accepted_share: float = refusals.ACCEPTED_SHARE,
    whole: bool = False,
    progress: Callable[[int, int], None] = lambda scored, spans: None,
) -> BatchViewPublished:
    """Make a new batch view and move the horizon.

    accepted_share: of the events that have a prediction, how many may lose it. whole: whether to score all events,
    even if the visible view is the champion's and could only grow. progress: called with how many spans of a large
    archive are scored, and how many there are.
    Raises: TooManyRefused when more would; BadInput when there is nothing to score or no champion; Conflict when
    another version became champion, or another view visible, meanwhile.
    """
    started, run = time.monotonic(), secrets.token_hex(8)
    engine = mysql.engine(settings, "platform")
    create_tables(spark, packed.load())
    with mysql.named_lock(engine, f"deeplambda.{packed.name}.recompute"), ExitStack() as reading:
        with engine.connect() as connection:
            champion = registry.champion(connection, packed.name)
            visible = read_batch_view(connection, packed.name)
        if champion is None:
            raise BadInput(f"{packed.name} has no champion", f"run 'deeplambda model promote {packed.name}' first")
        archive, view = f"lake.{packed.name}.events", f"lake.{packed.name}.predictions"
        grows = visible.version == champion.version and not whole
        follows_from = f"{champion.version}-{visible.horizon.snapshot}-{settings.event_limit_bytes}"
        staging = reading.enter_context(Staging(spark, packed.name, follows_from, settings.kept_days))
        pinned = (None if grows else staging.pinned()) or current_snapshot(spark, archive)
        if pinned is None:
            raise BadInput(f"{archive} is empty", "send events first; the archive takes them within seconds")
        reading.enter_context(held(spark, archive, pinned, settings.kept_days))
        if grows:
            events = gained(spark, archive, pinned, visible)
            reading.enter_context(bucketed_joins(spark))  # else each run would shuffle the ids of the whole batch view
        else:
            events = read_snapshot(spark, archive, pinned)
        reached = {
            row.kafka_partition: row.horizon
            for row in events.groupBy("kafka_partition").agg((F.max("kafka_offset") + 1).alias("horizon")).collect()
        }
        reaches = Horizon(offsets={**visible.horizon.offsets, **reached} if grows else reached)
        check_forward(packed.name, reaches.offsets, visible.horizon)
        archived = events
        seen = None if grows else staging.score(pinned, partial(_scored, settings, champion), progress)
        if seen is not None:  # with events that were withdrawn before, or after, they were scored
            seen = counted(spark, packed.name, "events", seen)
        else:
            events = counted(spark, packed.name, "events", events)
            seen = _scored(settings, champion, events).persist(StorageLevel.DISK_ONLY)
            reading.callback(seen.unpersist)
        scored, refused = seen.where("reason IS NULL"), seen.where("reason IS NOT NULL")
        base = None
        if grows:
            base = _add(spark, packed.name, visible.horizon, _first_copies(scored), run)
        else:
            _first_copies(scored).writeTo(view).option(SNAPSHOT_OPTION, run).overwrite(F.lit(True))
        looked_at, count = seen.count(), refused.count()
        if count:
            refusals.keep(spark, packed.name, refused, count)
        lost = refusals.dropped(
            *(spark, engine, packed.name, visible.horizon, reaches, archived, scored, refused), batch_view_stays=grows
        )
        refusals.check_share(packed.name, champion.version, lost, accepted_share)
        written = written_by(spark, view, run)
        if written is None:
            raise BadInput(f"no archived event of {packed.name} can be scored", "see its dead letters")
        if grows and written.parent != base:
            raise Conflict(f"another run wrote to {view} at the same time", "run it again")
        published = BatchViewPublished(
            application=packed.name,
            snapshot=written.snapshot,
            events_snapshot=pinned,
            version=champion.version,
            offsets=dict(reaches.offsets),
            rows=snapshot_size(spark, view, written.snapshot).rows,
            scored=looked_at,
            taken_up=0 if grows else staging.taken_up(pinned),
            refused=count,
            missing=lost.missing,
            duration_s=time.monotonic() - started,
        )
        hide_scored_late(spark, engine, packed.name, visible.horizon)
        with mysql.mysql_errors(), engine.begin() as connection:
            registry.still_champion(connection, champion)
            move_horizon(connection, published, replaces=visible)
    with Publisher(settings) as publisher:
        outbox.relay(engine, publisher)
    return published


def gained(spark: SparkSession, archive: str, pinned: int, visible: BatchView) -> DataFrame:
    """The events of the archive's snapshot `pinned` at or past the horizon of the visible view.

    They are in files that the archive has got since, or that were written together with such. By the time of the first
    event in these, Iceberg leaves the others out, however the offsets of a file's partitions differ. Without the
    snapshot that the view was made of, all files are read.
    """
    events = read_snapshot(spark, archive, pinned).where(visible.horizon.past_spark())
    if visible.events_snapshot is None or not has_snapshot(spark, archive, visible.events_snapshot):
        return events
    now_there, before = (
        read_snapshot(spark, f"{archive}.files", snapshot) for snapshot in (pinned, visible.events_snapshot)
    )
    first = F.coalesce(F.unix_micros("readable_metrics.kafka_timestamp.lower_bound"), F.lit(0))
    (since,) = now_there.join(before, "file_path", "left_anti").agg(F.min(first)).collect()[0]
    time, since_then = F.col("kafka_timestamp"), F.timestamp_micros(F.lit(since).cast("bigint"))
    return events.where(time.isNull() | (time >= since_then))


def _add(spark: SparkSession, application: str, horizon: Horizon, rows: DataFrame, run: str) -> int | None:
    """Append to the visible batch view what it does not hold, for of an event sent again the first copy counts.

    The snapshot that was appended to.
    """
    view, table = f"lake.{application}.predictions", f"{application}.predictions"
    spark.sql(f"CALL lake.system.set_current_snapshot('{table}', {horizon.snapshot})")
    if snapshot_size(spark, view, horizon.snapshot).files > _MANY_FILES:  # type: ignore[arg-type]  # it grows
        spark.sql(f"CALL lake.system.rewrite_data_files(table => '{table}')")
    gone = withdrawn(spark, application, "events")
    if gone is not None and spark.table(view).join(gone, list(POSITION), "left_semi").count():
        positions = f"SELECT DISTINCT kafka_partition, kafka_offset FROM lake.{application}.withdrawals"
        spark.sql(
            f"MERGE INTO {view} AS there USING ({positions} WHERE topic = 'events') AS gone ON there.kafka_partition = "
            "gone.kafka_partition AND there.kafka_offset = gone.kafka_offset WHEN MATCHED THEN DELETE"
        )
    base = current_snapshot(spark, view)
    there = read_snapshot(spark, view, base).select("event_id")  # type: ignore[arg-type]  # it grows
    rows.join(there, "event_id", "left_anti").writeTo(view).option(SNAPSHOT_OPTION, run).append()
    return base


def _scored(settings: Settings, champion: Card, events: DataFrame) -> DataFrame:
    # The id as bytes: the archive keeps a key as it came, and one that is no UTF-8 could not be read as text.
    key = F.col("event_id").cast("binary").alias("event_id")
    inputs = events.select(key, *_COPIES_IN_ORDER, "value")
    tasks = events.sparkSession.sparkContext.defaultParallelism
    if inputs.rdd.getNumPartitions() < tasks:
        inputs = inputs.repartition(tasks)  # Parquet is divided by 128 MiB: one task would score a smaller archive
    return inputs.mapInArrow(_scoring(settings, champion), from_arrow_schema(SEEN_SCHEMA))


def _first_copies(scored: DataFrame) -> DataFrame:
    """One row for each event: its first copy by the broker's time, for where a topic got more partitions an event may
    come again in another one, at a lower offset."""
    first = F.min_by(F.struct(*VIEW_SCHEMA.names), F.struct(*_COPIES_IN_ORDER)).alias("first")
    return scored.groupBy("event_id").agg(first).select("first.*")


@lru_cache(maxsize=2)
def loaded(settings: Settings, champion_json: str) -> "tuple[LoadedCode, torch.nn.Module]":
    """The champion's code and model, on the device that is set, kept by the worker between tasks."""
    import torch

    from batch_layer.compute import best_compute

    torch.set_num_threads(1)  # Spark already runs a task on each core
    store, champion = ObjectStore(settings), Card.model_validate_json(champion_json)
    code = load_code(store, settings, champion)
    return code, fetch_model(store, code.application, champion).to(best_compute(settings.device).device)


def _scoring(settings: Settings, champion: Card) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    champion_json, version = champion.model_dump_json(), champion.version

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        code, model = loaded(settings, champion_json)
        for batch in batches:
            inputs = batch.to_pylist()
            records = [(None if row["event_id"] is None else bytes(row["event_id"]), row["value"]) for row in inputs]
            admitted = admit(code.featurizer, records, limit_bytes=settings.event_limit_bytes)
            found = answered(partial(model_outputs, model), code.application.objective, admitted.features)
            rows = [inputs[admitted.rows_N[n]] for n in found.rows_N]
            events = [admitted.events_N[n] for n in found.rows_N]
            yield _seen(
                event_id=[event.event_id for event in events],
                kafka_partition=[row["kafka_partition"] for row in rows],
                kafka_offset=[row["kafka_offset"] for row in rows],
                kafka_timestamp=[row["kafka_timestamp"] for row in rows],
                occurred_at=[event.occurred_at for event in events],
                predicted_at=[now()] * len(events),
                model_version=[version] * len(events),
                prediction=found.values_N,
                confidence=found.confidence_N,
                value=found.numbers_N,
                scores=[json_text(scores) for scores in found.scores_N],
                slices=[json_text(slices_of(code.application, event)) for event in events],
            )
            refused = [(inputs[n], refusal) for n, refusal in admitted.refused] + [
                (inputs[admitted.rows_N[n]], RefusedEvent(refusal.message, refusal.remedy, Reason.MODEL_FAILED))
                for n, refusal in found.refused.items()
            ]
            yield _seen(
                event_id=[_text(row["event_id"]) for row, _ in refused],
                kafka_partition=[row["kafka_partition"] for row, _ in refused],
                kafka_offset=[row["kafka_offset"] for row, _ in refused],
                kafka_timestamp=[row["kafka_timestamp"] for row, _ in refused],
                reason=[str(refusal.reason) for _, refusal in refused],
                detail=[str(refusal)[:_DETAIL_CHARACTERS] for _, refusal in refused],
                record=[row["value"] for row, _ in refused],
            )

    return score


def model_outputs(model: "torch.nn.Module", features: Features) -> NDArray[np.float32]:
    """Raw outputs of all rows, pass by pass."""
    import torch

    device = next(model.parameters(), torch.empty(0)).device
    passes = []
    with torch.inference_mode():
        for first in range(0, row_count(features), _PASS_ROWS):
            rows = chosen(features, slice(first, first + _PASS_ROWS))
            outputs = call(model, {name: torch.from_numpy(array).to(device) for name, array in rows.items()})
            passes.append(outputs.float().cpu().numpy())
    return np.concatenate(passes)


def _text(key: bytes | None) -> str | None:
    return None if key is None else bytes(key).decode(errors="replace")


def _seen(**columns: Any) -> pa.RecordBatch:
    """A batch of `SEEN_SCHEMA`, with NULL in the columns that are not given."""
    rows = len(columns["kafka_offset"])
    arrays = [
        pa.array(columns.get(field.name, [None] * rows), field.type, from_pandas=True)  # NaN, "I have none", is NULL
        for field in SEEN_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SEEN_SCHEMA)
