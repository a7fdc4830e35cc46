"""Prepare: pinned snapshots of examples and labelled events → shards of features on S3, announced one by one.

1. The labelled events are checked and made rows like those of the examples (`labelled_events`).
2. An application with a `fit` learns its state from the train split, in one worker, batch by batch.
3. The driver deals all rows out by a hash of their event id into partitions of a size in bytes, the train split's
   first, of each split the examples before the events. What an earlier data set has of the examples, made by the same
   code with the same learned state, is copied (`unchanged_shards`). All other partitions are one Spark job.
4. A worker takes a partition, sorts it, calls the application's transform and puts the shard on S3, beside it what the
   rows were made of, where models will be judged by them. Rows whose label the objective does not know, or that the
   transform refuses, are left out and counted.
5. Then it announces `PartitionPrepared`; whoever trains may begin with that shard while others are still prepared.
   Last it puts the announcement beside the shard: what has one is not made again after a crash.
6. What the data set was made of is kept beside the shards; at the end the manifest, which lists them. Preparing again
   what has a manifest makes no shard, and has the data set be of the newer snapshots.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic_core import to_json
from pyspark import StorageLevel, TaskContext
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from batch_layer import labelled_events
from batch_layer.data_set import DataSet, data_set_id, fetch_data_set
from batch_layer.fitting import featurizer_of, fetch_state, learned_state
from batch_layer.labelled_events import LabelledEvents
from batch_layer.newest import newest_examples
from batch_layer.row_checks import REASON
from batch_layer.shard_format import (
    ANNOUNCEMENT,
    MANIFEST,
    announcement_key,
    data_set_key,
    manifest_key,
    payload_key,
    prepared_prefix,
    shard_key,
    write_shard,
)
from batch_layer.unchanged_shards import JUDGED, copied
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.lake import has_snapshot, tag_snapshot
from deeplambda.adapters.s3 import ObjectStore, sha256_of
from deeplambda.application import payload_schema
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.features import Features, concatenated
from deeplambda.learned import EncodedState
from deeplambda.loading import PackedApplication
from deeplambda.objective import Objective, labels_of, statistics_of
from deeplambda.records import topics
from deeplambda.records.isolation import Halved, halved
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.splits import TRAIN
from deeplambda.state import registry
from deeplambda.state.kept_rows import PayloadWriter

REFUSED_SHARE = 0.05
"""Of the rows, how many may be left out, for an unknown label or by the transform, before the data set is refused."""
_ASKED_AT_ONCE = 16
_DEALT, _IS_EVENT = "deeplambda_task", "deeplambda_is_event"
_ANNOUNCEMENTS = pa.schema([("announcement", pa.string())])


def prepare(
    spark: SparkSession, settings: Settings, packed: PackedApplication, dataset: DataSet
) -> list[PartitionPrepared]:
    """Make every shard of `dataset` that is to be made; returns what was announced of each."""
    store = ObjectStore(settings)
    manifest = manifest_key(dataset.application, dataset.id)
    if store.digest(manifest) is not None:
        _renew(spark, settings, store, dataset)
        listed = store.get(manifest)
        store.put(manifest, listed)  # touched, for upkeep removes a data set that was of no use for long
        return MANIFEST.validate_json(listed)
    spark.sparkContext.addPyFile(str(packed.zip_file))
    with _rows(spark, settings, packed, dataset) as rows:
        events = rows.events_by_split()
        state = learned_state(settings, packed, dataset.id, rows.train())
        made = _announced(store, dataset)
        deal = _Deal(dataset, _shards(dataset, dataset.examples), _shards(dataset, events))
        copies = _copies(settings, packed, deal, state, made)
        made += copies
        deal = replace(deal, made={(each.split, each.partition) for each in made})
        done = [task for task, partition in enumerate(deal.partitions) if partition in deal.made]
        left = rows.all if deal.of_examples - deal.made or rows.good is None else rows.good
        announced = (
            left.withColumn(_DEALT, deal.column())
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
    found = dataset.model_copy(update={"left_out": left_out, "copied": len(copies)})
    store.put(data_set_key(packed.name, dataset.id), to_json(found))
    store.put(manifest, to_json(made))
    return made


def _renew(spark: SparkSession, settings: Settings, store: ObjectStore, dataset: DataSet) -> None:
    """Write the newer snapshots down for a finished data set of the same rows, so that what was withdrawn between the
    two, none of which it has, is not held against it."""
    kept, newer = fetch_data_set(store, dataset.application, dataset.id), dataset.labelled_events
    if not (kept and kept.labelled_events and newer and newer.as_of > kept.labelled_events.as_of):
        return
    tables = ((f"lake.{dataset.application}.{table}", snapshot) for table, snapshot in _snapshots(newer))
    if not all(has_snapshot(spark, table, snapshot) for table, snapshot in tables):
        return  # it was pinned long ago: the older ones stand
    keep_snapshots(spark, settings, dataset, newer)
    renewed = kept.model_copy(update={"labelled_events": newer})
    store.put(data_set_key(dataset.application, dataset.id), to_json(renewed))


def keep_snapshots(spark: SparkSession, settings: Settings, dataset: DataSet, found: LabelledEvents) -> None:
    """Keep what the data set was made of until a version's card names it: a withdrawal meanwhile is told by them."""
    for table, snapshot in _snapshots(found):
        tag = f"data-set-{dataset.id}-{snapshot}"
        tag_snapshot(spark, f"lake.{dataset.application}.{table}", tag, snapshot, settings.kept_days)


def _snapshots(found: LabelledEvents) -> tuple[tuple[str, int], ...]:
    """By table."""
    return ("events", found.events_snapshot), ("labels", found.labels_snapshot)


@dataclass(frozen=True)
class _Rows:
    """A data set's rows: event id, payload, label, split, and whether it is an event. events: likewise with the reason
    of those that are left out. good: the others of them. Both are None where there are no events."""

    examples: DataFrame
    events: DataFrame | None = None
    good: DataFrame | None = None

    @property
    def all(self) -> DataFrame:
        return self.examples if self.good is None else self.examples.unionByName(self.good)

    def train(self) -> DataFrame:
        return self.all.where(F.col("split") == TRAIN)

    def events_by_split(self) -> dict[str, int]:
        return self._counts("split", f"{REASON} IS NULL")

    def left_out(self) -> dict[str, int]:
        return self._counts(REASON, f"{REASON} IS NOT NULL")

    def _counts(self, column: str, condition: str) -> dict[str, int]:
        if self.events is None:
            return {}
        return {row[column]: row["count"] for row in self.events.where(condition).groupBy(column).count().collect()}


@contextmanager
def _rows(spark: SparkSession, settings: Settings, packed: PackedApplication, dataset: DataSet) -> Iterator[_Rows]:
    """Events are checked once, and kept on disk meanwhile; what is read of the archive stays there."""
    columns = ["event_id", *payload_schema(packed.load().event).names, "label", "split"]
    examples, found = newest_examples(spark, dataset.application, dataset.snapshot), dataset.labelled_events
    labelled = examples.where("label IS NOT NULL").select(columns).withColumn(_IS_EVENT, F.lit(False))
    if found is None or not found.events:
        yield _Rows(labelled)
        return
    keep_snapshots(spark, settings, dataset, found)
    with ExitStack() as reading:
        given = labelled_events.admitted(spark, settings, packed, found, dataset.snapshot)
        reading.callback(given.persist(StorageLevel.DISK_ONLY).unpersist)
        events = labelled_events.without_leaks(packed.load(), given, examples).persist(StorageLevel.DISK_ONLY)
        reading.callback(events.unpersist)
        good = events.where(F.col(REASON).isNull()).select(columns).withColumn(_IS_EVENT, F.lit(True))
        yield _Rows(labelled, events, good)


def _shards(dataset: DataSet, rows: Mapping[str, int]) -> dict[str, int]:
    """How many shards the rows of each split get."""
    return {split: math.ceil(count / dataset.shard_rows) for split, count in rows.items()}


@dataclass(frozen=True)
class _Deal:
    """How a data set's rows are dealt out to the tasks of one job. examples, events: how many shards each split has of
    them. made: partitions by split that are there already."""

    dataset: DataSet
    examples: Mapping[str, int]
    events: Mapping[str, int]
    made: Set[tuple[str, int]] = frozenset()

    @property
    def shards(self) -> dict[str, int]:
        """By split."""
        splits = {*self.examples, *self.events}
        return {split: self.examples.get(split, 0) + self.events.get(split, 0) for split in splits}

    @property
    def of_examples(self) -> set[tuple[str, int]]:
        """The partitions by split that have examples, and no events."""
        return {(split, partition) for split, count in self.examples.items() for partition in range(count)}

    @property
    def partitions(self) -> list[tuple[str, int]]:
        """(split, partition) of each task. Train comes first, for training begins with it."""
        splits = sorted(self.shards, key=lambda split: (split != TRAIN, split))
        return [(split, partition) for split in splits for partition in range(self.shards[split])]

    def column(self) -> Column:
        """The task that a row belongs to."""
        task, dealt = F.lit(None).cast("int"), self.partitions
        for is_event, shards in ((False, self.examples), (True, self.events)):
            for split, partitions in shards.items():
                first = dealt.index((split, self.examples.get(split, 0) if is_event else 0))
                of_split = F.pmod(F.xxhash64("event_id"), F.lit(partitions)).cast("int") + first
                task = F.when((F.col("split") == split) & (F.col(_IS_EVENT) == is_event), of_split).otherwise(task)
        return task


def _copies(
    settings: Settings,
    packed: PackedApplication,
    deal: _Deal,
    state: EncodedState | None,
    made: list[PartitionPrepared],
) -> list[PartitionPrepared]:
    """Copy those shards of the examples that are missing and that a version of before was trained on."""
    wanted = deal.of_examples - {(each.split, each.partition) for each in made}
    if not wanted or (earlier := _earlier(settings, packed, deal.dataset, state)) is None:
        return []
    shards = {place: deal.shards[place[0]] for place in wanted}
    return copied(settings, packed.name, earlier, deal.dataset.id, shards)


def _earlier(settings: Settings, packed: PackedApplication, dataset: DataSet, state: EncodedState | None) -> str | None:
    """The newest data set of a version whose shards of the examples are those of `dataset`, if it is still there."""
    store, name = ObjectStore(settings), packed.name
    with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
        cards = registry.cards(connection, name)
    alike = [
        card.dataset
        for card in reversed(cards)
        if (card.snapshot, card.code_version) == (dataset.snapshot, packed.code_version)
    ]
    for each in dict.fromkeys(alike):
        found = fetch_data_set(store, name, each)
        if found is None or store.digest(manifest_key(name, each)) is None:
            continue
        # Code, snapshot, size and format of the shards are all in its id.
        if each != data_set_id(packed, dataset.snapshot, dataset.shard_rows, found.labelled_events):
            continue
        if fetch_state(store, name, each) == state:
            return each
    return None


def _announced(store: ObjectStore, dataset: DataSet) -> list[PartitionPrepared]:
    """Of the partitions that an earlier attempt finished, what it announced."""
    keys = {found.key for found in store.list(prepared_prefix(dataset.application, dataset.id))}
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as executor:
        found = executor.map(store.get, sorted(key for key in keys if key.endswith(ANNOUNCEMENT)))
        told = [PartitionPrepared.model_validate_json(announcement) for announcement in found]
    return [announcement for announcement in told if announcement.key in keys]


def _check_refused(application: str, announcements: list[PartitionPrepared]) -> None:
    refused = sum(each.refused for each in announcements)
    if refused > REFUSED_SHARE * (refused + sum(each.rows for each in announcements)):
        reason = next(each.first_refusal for each in announcements if each.first_refusal)
        raise BadInput(
            f"{refused:,} rows of {application} cannot be prepared, the first because {reason}",
            "fix the transform, name the label in the objective, or refuse such rows in the event's schema",
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
    labels: list[NDArray[Any]] = []
    refusals: list[str] = []
    judged = PayloadWriter(payload) if split in JUDGED else None
    events = 0
    objective = featurizer.application.objective
    for given in batches:
        known = _known_labels(objective, given["label"].to_pylist())
        batch = given.take(pa.array(known.rows, pa.int64())) if known.refused else given
        found = featurizer.isolated(batch.select(payload.names))
        passed = pa.array(found.rows_N, pa.int64())
        pieces.append(found.features)
        if found.rows_N:
            labels.append(np.concatenate([labels_N for _, labels_N in known.pieces])[found.rows_N])
        refusals += [str(refusal) for refused in (known.refused, found.refused) for refusal in refused.values()]
        events += pc.sum(batch[_IS_EVENT].take(passed)).as_py() or 0
        if judged:
            judged.write(batch.select(payload.names).take(passed))
    place = (dataset.application, dataset.id, split, partition)
    if judged and labels:
        store.put(payload_key(*place), judged.finished())
        del judged  # before the shard takes as much
    features = concatenated([piece for piece in pieces if piece])
    del pieces  # before the shard is written, which takes as much twice
    labels_N = np.concatenate(labels) if labels else labels_of(objective, [])
    shard = write_shard(features, labels_N)
    del features
    store.put(shard_key(*place), shard)
    announcement = PartitionPrepared(
        application=dataset.application,
        dataset=dataset.id,
        split=split,
        partition=partition,
        partitions=deal.shards[split],
        key=shard_key(*place),
        sha256=sha256_of(shard),
        rows=len(labels_N),
        events=events,
        refused=len(refusals),
        first_refusal=refusals[0] if refusals else None,
        size_bytes=len(shard),
        label_statistics=statistics_of(objective, labels_N),
        duration_s=time.monotonic() - started,
    )
    with Publisher(settings) as publisher:
        publisher.send(topics.LIFECYCLE, dataset.application, announcement)
    store.put(announcement_key(*place), to_json(announcement))
    return announcement


def _known_labels(objective: Objective, labels: list[Any]) -> Halved[NDArray[Any]]:
    """The arrays of labels, and which the objective does not know: it may be another than when they were ingested."""

    def attempt(piece: slice) -> NDArray[Any]:
        try:
            return labels_of(objective, labels[piece])
        except ValueError as exc:
            raise BadInput(str(exc)) from exc

    return halved(attempt, len(labels), BadInput, within_s=math.inf)
