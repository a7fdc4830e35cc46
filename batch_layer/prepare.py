"""Prepare: pinned snapshots of examples and labelled events → shards of features on S3, announced one by one.

1. The labelled events are checked and made rows like those of the examples (`labelled_events`).
2. An application with a `fit` learns its state from the train split, in one worker, batch by batch.
3. The driver deals all rows out by a hash of their event id into partitions of a size in bytes, the train split's
   first. All of them are one Spark job.
4. A worker takes a partition, sorts it, calls the application's transform and puts the shard on S3, beside it what the
   rows were made of, where models will be judged by them. Rows that the transform refuses are left out and counted.
5. Then it announces `PartitionPrepared`; whoever trains may begin with that shard while others are still prepared.
   Last it puts the announcement beside the shard: what has one is not made again after a crash.
6. What the data set was made of is kept beside the shards; at the end the manifest, which lists them. Preparing again
   what has a manifest does nothing.
"""

import hashlib
import math
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json, to_json
from pyspark import StorageLevel, TaskContext
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from batch_layer import labelled_events
from batch_layer.labelled_events import LabelledEvents
from batch_layer.newest import newest_examples
from batch_layer.shard_format import (
    ANNOUNCEMENT,
    MANIFEST,
    SHARD_FORMAT,
    announcement_key,
    data_set_key,
    manifest_key,
    payload_key,
    prepared_prefix,
    shard_key,
    state_key,
    write_shard,
)
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.lake import current_snapshot, held, snapshot_size
from deeplambda.adapters.s3 import ObjectStore, sha256_of
from deeplambda.application import learns, payload_schema
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.features import Features, concatenated, declared, row_bytes, zero_features
from deeplambda.learned import EncodedState, decode_state, encode_state
from deeplambda.loading import PackedApplication
from deeplambda.objective import labels_of, statistics_of
from deeplambda.records import topics
from deeplambda.records.featurizer import Featurizer, said
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.splits import RECENT, TEST, TRAIN
from deeplambda.state.kept_rows import PayloadWriter

SHARD_BYTES = 32 * 2**20
"""About what a shard's features, and its payloads as the lake keeps them, take: a worker holds them at once."""
UNDECLARED_ROWS = 8192
"""Rows of a shard, at most, where the application does not declare its features and so not what a row of them takes."""
REFUSED_SHARE = 0.05
"""Of the rows, how many the transform may refuse before the data set is refused."""
_ASKED_AT_ONCE = 16
_DEALT, _IS_EVENT = "deeplambda_task", "deeplambda_is_event"
_ANNOUNCEMENTS = pa.schema([("announcement", pa.string())])
_LEARNED = pa.schema([("format", pa.string()), ("content", pa.binary()), ("failure", pa.string())])


class DataSet(BaseModel):
    """Rows of pinned snapshots, seen through one version of the transform: the newest of each example, and the labelled
    events. Equal ids mean equal rows.

    examples: labelled ones by split. unlabelled: examples that training passes over, for they have no label. left_out:
    labelled events by why they are in no split; known once the data set is prepared.
    """

    model_config = ConfigDict(frozen=True)

    application: str
    id: str
    snapshot: int
    shard_rows: int
    examples: dict[str, int]
    unlabelled: int = 0
    labelled_events: LabelledEvents | None = None
    left_out: dict[str, int] = {}


def data_set(spark: SparkSession, packed: PackedApplication, snapshot: int | None = None) -> DataSet:
    """The data set of a snapshot of the examples (default: the newest) and of the events that are labelled now.

    Raises: BadInput when there are no labelled examples.
    """
    table = f"lake.{packed.name}.examples"
    pinned = snapshot or current_snapshot(spark, table)
    if pinned is None:
        raise BadInput(f"{table} is empty", f"run 'deeplambda batch ingest {packed.name}' first")
    counted = F.count("label").alias("labelled"), F.count("*").alias("rows")
    counts = newest_examples(spark, packed.name, pinned).groupBy("split").agg(*counted).collect()
    if not any(row["labelled"] for row in counts):
        raise BadInput(f"no row of {table} has a label", "name the label's column in the application's sources")
    shard_rows = _shard_rows(spark, packed, pinned)
    identity = f"{packed.name}/{packed.code_version}/{pinned}/{shard_rows}/{SHARD_FORMAT}"
    found = labelled_events.find(spark, packed, pinned)
    if found is not None and found.events:
        identity += f"/{found.fingerprint}"
    return DataSet(
        application=packed.name,
        id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        snapshot=pinned,
        shard_rows=shard_rows,
        examples={row["split"]: row["labelled"] for row in counts if row["labelled"]},
        unlabelled=sum(row["rows"] - row["labelled"] for row in counts),
        labelled_events=found,
    )


def _shard_rows(spark: SparkSession, packed: PackedApplication, snapshot: int) -> int:
    features = declared(packed.load().features)
    of_lake = snapshot_size(spark, f"lake.{packed.name}.examples", snapshot)
    largest = max(1, math.ceil(of_lake.bytes / max(1, of_lake.rows)), row_bytes(zero_features(features or {})))
    rows = max(1, SHARD_BYTES // largest)
    return rows if features else min(rows, UNDECLARED_ROWS)


def prepare(
    spark: SparkSession, settings: Settings, packed: PackedApplication, dataset: DataSet
) -> list[PartitionPrepared]:
    """Make every shard of `dataset` that is to be made; returns what was announced of each."""
    store = ObjectStore(settings)
    manifest = manifest_key(dataset.application, dataset.id)
    if store.digest(manifest) is not None:
        return MANIFEST.validate_json(store.get(manifest))
    spark.sparkContext.addPyFile(str(packed.zip_file))
    with _rows(spark, settings, packed, dataset) as rows:
        events = rows.events_by_split()
        state = learned_state(settings, packed, dataset, rows.train())
        made = _announced(store, dataset)
        deal = _Deal(dataset, _shards(dataset, events), {(each.split, each.partition) for each in made})
        done = [task for task, partition in enumerate(deal.partitions) if partition in deal.made]
        announced = (
            rows.all.withColumn(_DEALT, deal.column())
            .drop("split")
            .where(~F.col(_DEALT).isin(done))
            .repartitionById(len(deal.partitions), _DEALT)
            .sortWithinPartitions("event_id")
            .mapInArrow(_preparation(settings, packed, deal, state), from_arrow_schema(_ANNOUNCEMENTS))
        )
        made += [PartitionPrepared.model_validate_json(row["announcement"]) for row in announced.collect()]
        left_out = rows.left_out()
    there = {(each.split, each.partition) for each in made}
    for task, partition in enumerate(deal.partitions):
        if partition not in there:  # Spark starts no task when it finds out that no row is left
            made.append(_prepared(settings, packed, deal, state, task, iter(())))
    _check_refused(packed.name, made)
    made.sort(key=lambda each: (each.split != TRAIN, each.split, each.partition))  # as without a crash
    store.put(data_set_key(packed.name, dataset.id), to_json(dataset.model_copy(update={"left_out": left_out})))
    store.put(manifest, to_json(made))
    return made


def fetch_data_set(store: ObjectStore, application: str, dataset: str) -> DataSet | None:
    """What a prepared data set was made of; None of one that an earlier release prepared. Raises: NotReady."""
    key = data_set_key(application, dataset)
    return DataSet.model_validate_json(store.get(key)) if store.digest(key) is not None else None


@dataclass(frozen=True)
class _Rows:
    """A data set's rows. all: event id, payload, label, split, and whether it is an event. events: likewise with the
    reason of those that are left out; None where there are none."""

    all: DataFrame
    events: DataFrame | None

    def train(self) -> DataFrame:
        return self.all.where(F.col("split") == TRAIN)

    def events_by_split(self) -> dict[str, int]:
        return self._counts("split", "reason IS NULL")

    def left_out(self) -> dict[str, int]:
        return self._counts("reason", "reason IS NOT NULL")

    def _counts(self, column: str, condition: str) -> dict[str, int]:
        if self.events is None:
            return {}
        return {row[column]: row["count"] for row in self.events.where(condition).groupBy(column).count().collect()}


@contextmanager
def _rows(spark: SparkSession, settings: Settings, packed: PackedApplication, dataset: DataSet) -> Iterator[_Rows]:
    """Events are checked once, and kept on disk meanwhile; what is read of the archive stays there."""
    columns = ["event_id", *payload_schema(packed.load().event).names, "label", "split"]
    examples = newest_examples(spark, dataset.application, dataset.snapshot).where("label IS NOT NULL").select(columns)
    examples, found = examples.withColumn(_IS_EVENT, F.lit(False)), dataset.labelled_events
    if found is None or not found.events:
        yield _Rows(examples, None)
        return
    archive = (("events", found.events_snapshot), ("labels", found.labels_snapshot))
    with ExitStack() as reading:
        for table, snapshot in archive:
            reading.enter_context(held(spark, f"lake.{packed.name}.{table}", snapshot, settings.kept_days))
        events = labelled_events.rows(spark, settings, packed, found, dataset.snapshot)
        events = events.persist(StorageLevel.DISK_ONLY)
        reading.callback(events.unpersist)
        good = events.where("reason IS NULL").select(columns).withColumn(_IS_EVENT, F.lit(True))
        yield _Rows(examples.unionByName(good), events)


def _shards(dataset: DataSet, events: Mapping[str, int]) -> dict[str, int]:
    """How many shards each split gets."""
    rows = {split: dataset.examples.get(split, 0) + events.get(split, 0) for split in {*dataset.examples, *events}}
    return {split: math.ceil(count / dataset.shard_rows) for split, count in rows.items()}


@dataclass(frozen=True)
class _Deal:
    """How a data set's rows are dealt out to the tasks of one job. shards: by split. made: partitions by split that are
    there already."""

    dataset: DataSet
    shards: Mapping[str, int]
    made: Set[tuple[str, int]]

    @property
    def partitions(self) -> list[tuple[str, int]]:
        """(split, partition) of each task. Train comes first, for training begins with it."""
        splits = sorted(self.shards, key=lambda split: (split != TRAIN, split))
        return [(split, partition) for split in splits for partition in range(self.shards[split])]

    def column(self) -> Column:
        """The task that a row belongs to."""
        task, dealt = F.lit(None).cast("int"), self.partitions
        for split, partitions in self.shards.items():
            of_split = F.pmod(F.xxhash64("event_id"), F.lit(partitions)).cast("int") + dealt.index((split, 0))
            task = F.when(F.col("split") == split, of_split).otherwise(task)
        return task


def _announced(store: ObjectStore, dataset: DataSet) -> list[PartitionPrepared]:
    """Of the partitions that an earlier attempt finished, what it announced."""
    keys = {found.key for found in store.list(prepared_prefix(dataset.application, dataset.id))}
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as executor:
        found = executor.map(store.get, sorted(key for key in keys if key.endswith(ANNOUNCEMENT)))
        told = [PartitionPrepared.model_validate_json(announcement) for announcement in found]
    return [announcement for announcement in told if announcement.key in keys]


def learned_state(
    settings: Settings, packed: PackedApplication, dataset: DataSet, train: DataFrame
) -> EncodedState | None:
    """What `fit` learns from the data set's train split; None for an application without one. Learned once.

    Raises: BadInput when `fit` fails.
    """
    application = packed.load()
    if not learns(application):
        return None
    store, key = ObjectStore(settings), state_key(dataset.application, dataset.id)
    if store.digest(key) is not None:
        return fetch_state(store, dataset.application, dataset.id)
    columns = [*payload_schema(application.event).names, "label"]
    answer = train.select(columns).coalesce(1).mapInArrow(_fitting(packed), from_arrow_schema(_LEARNED)).first()
    if answer is None or answer["failure"] is not None:
        reason = answer["failure"] if answer else "the train split has no rows"
        raise BadInput(f"fit of {packed.name} failed: {reason}", "fix the application's fit")
    state = EncodedState(format=answer["format"], content=bytes(answer["content"]))
    store.put(key, to_json({"format": state.format, "content": b64encode(state.content).decode()}))
    return state


def fetch_state(store: ObjectStore, application: str, dataset: str) -> EncodedState | None:
    """The learned state of a prepared data set; None where the application learns nothing. Raises: NotReady."""
    key = state_key(application, dataset)
    if store.digest(key) is None:
        return None
    kept = from_json(store.get(key))
    return EncodedState(format=kept["format"], content=b64decode(kept["content"]))


def featurizer_of(packed: PackedApplication, state: EncodedState | None) -> Featurizer:
    """The application's transform with its learned state."""
    application = packed.load()
    return Featurizer(
        application,
        code_version=packed.code_version,
        state=decode_state(application.fit, state) if state else None,
        state_sha256=state.sha256 if state else None,
    )


def _fitting(packed: PackedApplication) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def fit(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        answer: dict[str, Any] = {"failure": None}
        try:
            state = encode_state(packed.load().fit(batches))
            answer |= {"format": state.format, "content": state.content}
        except Exception as exc:  # a user's code: told to the driver in one line
            answer["failure"] = said(exc)
        yield pa.RecordBatch.from_pylist([answer], schema=_LEARNED)

    return fit


def _check_refused(application: str, announcements: list[PartitionPrepared]) -> None:
    refused = sum(each.refused for each in announcements)
    if refused > REFUSED_SHARE * (refused + sum(each.rows for each in announcements)):
        reason = next(each.first_refusal for each in announcements if each.first_refusal)
        raise BadInput(
            f"the transform of {application} refuses {refused:,} rows, the first because {reason}",
            "fix the transform, or refuse such rows in the event's schema",
        )


def _preparation(
    settings: Settings, packed: PackedApplication, deal: _Deal, state: EncodedState | None
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def prepare_partition(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        task = context.partitionId() if context else 0
        if deal.partitions[task] not in deal.made:
            announcement = _prepared(settings, packed, deal, state, task, batches)
            yield pa.RecordBatch.from_pylist([{"announcement": announcement.model_dump_json()}], schema=_ANNOUNCEMENTS)

    return prepare_partition


def _prepared(
    settings: Settings,
    packed: PackedApplication,
    deal: _Deal,
    state: EncodedState | None,
    task: int,
    batches: Iterator[pa.RecordBatch],
) -> PartitionPrepared:
    """Make the shard of one task's rows, and announce it."""
    started, dataset = time.monotonic(), deal.dataset
    split, partition = deal.partitions[task]
    featurizer, store = featurizer_of(packed, state), ObjectStore(settings)
    payload = payload_schema(featurizer.application.event)
    pieces: list[Features] = []
    labels: list[Any] = []
    refusals: list[str] = []
    judged = PayloadWriter(payload) if split in (TEST, RECENT) else None
    events = 0
    for batch in batches:
        found = featurizer.isolated(batch.select(payload.names))
        passed = pa.array(found.rows_N, pa.int64())
        pieces.append(found.features)
        labels.extend(batch["label"].take(passed).to_pylist())
        refusals += [str(refusal) for refusal in found.refused.values()]
        events += pc.sum(batch[_IS_EVENT].take(passed)).as_py() or 0
        if judged:
            judged.write(batch.select(payload.names).take(passed))
    place = (dataset.application, dataset.id, split, partition)
    if judged and labels:
        store.put(payload_key(*place), judged.finished())
        del judged  # before the shard takes as much
    features = concatenated([piece for piece in pieces if piece])
    labels_N = labels_of(featurizer.application.objective, labels)
    shard = write_shard(features, labels_N)
    store.put(shard_key(*place), shard)
    announcement = PartitionPrepared(
        application=dataset.application,
        dataset=dataset.id,
        split=split,
        partition=partition,
        partitions=deal.shards[split],
        key=shard_key(*place),
        sha256=sha256_of(shard),
        rows=len(labels),
        events=events,
        refused=len(refusals),
        first_refusal=refusals[0] if refusals else None,
        size_bytes=len(shard),
        label_statistics=statistics_of(featurizer.application.objective, labels_N),
        duration_s=time.monotonic() - started,
    )
    with Publisher(settings) as publisher:
        publisher.send(topics.LIFECYCLE, dataset.application, announcement)
    store.put(announcement_key(*place), to_json(announcement))
    return announcement
