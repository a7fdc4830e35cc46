"""Prepare: a pinned snapshot of the examples → shards of features on S3, each announced when it is safely there.

1. The driver deals the snapshot's rows out into partitions by a hash of their event id.
2. A worker takes a partition, sorts it, calls the application's transform and puts the shard on S3.
3. Then it announces `PartitionPrepared`; whoever trains may begin with that shard while others are still prepared.
4. The manifest, last, lists all of them. Preparing again what has a manifest does nothing.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic_core import to_json
from pyspark import TaskContext
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from batch_layer.shard_format import MANIFEST, manifest_key, shard_key, write_shard
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.lake import current_snapshot, read_snapshot
from deeplambda.adapters.s3 import ObjectStore, sha256_of
from deeplambda.application import payload_schema
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.loading import PackedApplication
from deeplambda.records import topics
from deeplambda.records.lifecycle import PartitionPrepared

SHARD_ROWS = 8192
_ANNOUNCEMENTS = pa.schema([("announcement", pa.string())])


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A snapshot of the examples, seen through one version of the transform. shards: splits and their partitions."""

    application: str
    id: str
    snapshot: int
    shards: dict[str, int]


def data_set(spark: SparkSession, packed: PackedApplication, snapshot: int | None = None) -> DataSet:
    """The data set of `snapshot` (default: the newest). Raises: BadInput when there are no examples."""
    table = f"lake.{packed.name}.examples"
    pinned = snapshot or current_snapshot(spark, table)
    if pinned is None:
        raise BadInput(f"{table} is empty", f"run 'deeplambda batch ingest {packed.name}' first")
    counts = read_snapshot(spark, table, pinned).groupBy("split").count().collect()
    identity = f"{packed.name}/{packed.code_version}/{pinned}/{SHARD_ROWS}"
    return DataSet(
        application=packed.name,
        id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        snapshot=pinned,
        shards={row["split"]: math.ceil(row["count"] / SHARD_ROWS) for row in counts},
    )


def prepare(
    spark: SparkSession, settings: Settings, packed: PackedApplication, dataset: DataSet
) -> list[PartitionPrepared]:
    """Make every shard of `dataset` that is to be made; returns what was announced of each."""
    store = ObjectStore(settings)
    manifest = manifest_key(dataset.application, dataset.id)
    if store.digest(manifest) is not None:
        return MANIFEST.validate_json(store.get(manifest))
    spark.sparkContext.addPyFile(str(packed.zip_file))
    announcements: list[PartitionPrepared] = []
    for split, partitions in sorted(dataset.shards.items(), reverse=True):  # train first: training begins with it
        columns = ["event_id", *payload_schema(packed.load().event).names, "label"]
        announced = (
            read_snapshot(spark, f"lake.{dataset.application}.examples", dataset.snapshot)
            .where(f"split = '{split}'")
            .select(columns)
            .repartition(partitions, "event_id")
            .sortWithinPartitions("event_id")
            .mapInArrow(_preparation(settings, packed, dataset, split, partitions), from_arrow_schema(_ANNOUNCEMENTS))
        )
        announcements += [
            PartitionPrepared.model_validate_json(row["announcement"])
            for row in announced.toLocalIterator(prefetchPartitions=True)
        ]
    store.put(manifest, to_json(announcements))
    return announcements


def _preparation(
    settings: Settings, packed: PackedApplication, dataset: DataSet, split: str, partitions: int
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def prepare_partition(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        started = time.monotonic()
        context = TaskContext.get()
        partition = context.partitionId() if context else 0
        application = packed.load()
        payload = payload_schema(application.event)
        features, labels = [], []
        for batch in batches:
            features.append(application.transform(batch.select(payload.names)))
            labels.extend(batch["label"].to_pylist())
        if not features:
            empty = pa.RecordBatch.from_pylist([], schema=payload)
            features.append(application.transform(empty))
        shard = write_shard(np.concatenate(features), application.objective.label_array(labels))
        key = shard_key(dataset.application, dataset.id, split, partition)
        ObjectStore(settings).put(key, shard)
        announcement = PartitionPrepared(
            application=dataset.application,
            dataset=dataset.id,
            split=split,
            partition=partition,
            partitions=partitions,
            key=key,
            sha256=sha256_of(shard),
            rows=len(labels),
            size_bytes=len(shard),
            duration_s=time.monotonic() - started,
        )
        with Publisher(settings) as publisher:
            publisher.send(topics.LIFECYCLE, dataset.application, announcement)
        yield pa.RecordBatch.from_pylist([{"announcement": announcement.model_dump_json()}], schema=_ANNOUNCEMENTS)

    return prepare_partition
