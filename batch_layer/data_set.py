"""Which rows a data set is made of: a pinned snapshot of the examples, and the events that are labelled then.

Its id follows from what its shards depend on, so equal ids mean equal rows; rows are dealt out to shards of a size in
bytes.
"""

import hashlib
import math

import pyarrow as pa
from pydantic import BaseModel, ConfigDict
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from batch_layer import labelled_events
from batch_layer.labelled_events import LabelledEvents
from batch_layer.newest import newest_examples
from batch_layer.shard_format import SHARD_FORMAT, data_set_key
from deeplambda.adapters.lake import current_snapshot, has_snapshot, snapshot_size
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_schema
from deeplambda.errors import BadInput
from deeplambda.features import declared, row_bytes, zero_features
from deeplambda.loading import PackedApplication

SHARD_BYTES = 8 * 2**20
"""What a shard's features take at most, and what of its payloads is numbers, or about what the lake keeps of them: a
worker holds them at once, several times. No less than S3's guide would have one request fetch (performance guidelines:
8 to 16 MB)."""
UNDECLARED_ROWS = 8192
"""Rows of a shard, at most, where the application does not declare its features and so not what a row of them takes."""


class DataSet(BaseModel):
    """Rows of pinned snapshots, seen through one version of the transform: the newest of each example, and the labelled
    events. Equal ids mean equal rows.

    examples: labelled ones by split. unlabelled: examples that training passes over, for they have no label. Known once
    the data set is prepared: left_out, labelled events by why they are in no split; copied, how many shards are those
    of an earlier data set.
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
    copied: int = 0


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
    found = labelled_events.find(spark, packed, pinned)
    return DataSet(
        application=packed.name,
        id=data_set_id(packed, pinned, shard_rows, found),
        snapshot=pinned,
        shard_rows=shard_rows,
        examples={row["split"]: row["labelled"] for row in counts if row["labelled"]},
        unlabelled=sum(row["rows"] - row["labelled"] for row in counts),
        labelled_events=found,
    )


def is_current(packed: PackedApplication, dataset: DataSet) -> bool:
    """Whether this code would still make the same shards of the rows: a data set may have been pinned by another."""
    return dataset.id == data_set_id(packed, dataset.snapshot, dataset.shard_rows, dataset.labelled_events)


def has_snapshots(spark: SparkSession, dataset: DataSet) -> bool:
    """Whether the lake still has what the data set was made of."""
    pinned: dict[str, int | None] = {"examples": dataset.snapshot}
    if (found := dataset.labelled_events) is not None:
        pinned |= {"events": found.events_snapshot, "labels": found.labels_snapshot}
        pinned["withdrawals"] = found.withdrawals_snapshot
    tables = ((f"lake.{dataset.application}.{table}", snapshot) for table, snapshot in pinned.items() if snapshot)
    return all(has_snapshot(spark, table, snapshot) for table, snapshot in tables)


def fetch_data_set(store: ObjectStore, application: str, dataset: str) -> DataSet | None:
    """What a prepared data set was made of; None of one that an earlier release prepared. Raises: NotReady."""
    key = data_set_key(application, dataset)
    return DataSet.model_validate_json(store.get(key)) if store.digest(key) is not None else None


def data_set_id(packed: PackedApplication, snapshot: int, shard_rows: int, found: LabelledEvents | None) -> str:
    identity = f"{packed.name}/{packed.code_version}/{snapshot}/{shard_rows}/{SHARD_FORMAT}"
    if found is not None and found.events:
        identity += f"/{found.fingerprint}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _shard_rows(spark: SparkSession, packed: PackedApplication, snapshot: int) -> int:
    features = declared(packed.load().features)
    of_lake = snapshot_size(spark, f"lake.{packed.name}.examples", snapshot)
    columns = (field.type for field in payload_schema(packed.load().event))
    payload_bytes: int = sum(column.bit_width // 8 for column in columns if pa.types.is_primitive(column))
    compressed_bytes = math.ceil(of_lake.bytes / max(1, of_lake.rows))
    largest = max(1, compressed_bytes, payload_bytes, row_bytes(zero_features(features or {})))
    rows = max(1, SHARD_BYTES // largest)
    return rows if features else min(rows, UNDECLARED_ROWS)
