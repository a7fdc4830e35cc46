"""A small application of the tests' own, and data sets of it: three clouds of points to tell apart."""

import io
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from pydantic_core import from_json
from rich.console import Console

from batch_layer.console import EpochBars
from batch_layer.shard_format import payload_key, shard_key, write_shard
from batch_layer.training_run import TrainedRun, train
from deeplambda.adapters.kafka import Publisher, consumer
from deeplambda.adapters.s3 import ObjectStore, sha256_of
from deeplambda.config import Settings
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.records import topics
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.state.kept_rows import encode_payload

CENTRES = np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]], dtype=np.float32)
PARTITIONS = {"train": 3, "test": 2}
ROWS = 200
"""Of each partition."""

_SOURCE = """
import numpy as np
from deeplambda.application import Application, Choice, Event, LogUniform, Source
from deeplambda.objective import Classification, accuracy, negative_log_loss


class PointSeen(Event):
    point: list[float]


class Blobs(Application):
    name = "{name}"
    event = PointSeen
    sources = (Source(split="train", objects=("train",)), Source(split="test", objects=("test",)))
    objective = Classification(classes="abc")
    metrics = {{"accuracy": accuracy, "negative_log_loss": negative_log_loss}}
    hyperparameters = {{"epochs": 3, "batch_size": 50, "learning_rate": 0.02, "weight_decay": 0.0, "hidden": 16}}
    search_space = {{"learning_rate": LogUniform(1e-4, 1e-1), "hidden": Choice((8, 16))}}

    def examples(self, source, raw):
        return iter(())

    def transform(self, batch):
        return np.array(batch["point"].to_pylist(), dtype=np.float32)

    def build_model(self, *, hidden):
        from torch import nn

        return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 3))
"""


def blobs(settings: Settings, folder: Path) -> PackedApplication:
    """The application, written into `folder` under a name that no other test has."""
    name = f"blobs_{uuid4().hex[:8]}"
    home = folder / name
    home.mkdir()
    (home / "application.py").write_text(_SOURCE.format(name=name))
    return pack_application(str(home), settings)


def new_data_set() -> str:
    """A data set's id."""
    return uuid4().hex[:16]


def put_shards(settings: Settings, application: str, dataset: str, rows: int = ROWS) -> list[PartitionPrepared]:
    """Put every shard of a data set on S3; equal rows in every data set. Returns what is to be announced."""
    store, facts = ObjectStore(settings), []
    randomness = np.random.default_rng(7)
    for split, partitions in PARTITIONS.items():
        for partition in range(partitions):
            labels_N = randomness.integers(0, 3, rows)
            features = (CENTRES[labels_N] + randomness.normal(0, 0.5, (rows, 4))).astype(np.float32)
            shard, key = (
                write_shard({"features": features}, labels_N),
                shard_key(application, dataset, split, partition),
            )
            store.put(key, shard)
            if split == "test":
                payload = pa.table({"point": features.astype(np.float64).tolist()})
                store.put(payload_key(application, dataset, split, partition), encode_payload(payload))
            facts.append(
                PartitionPrepared(
                    application=application,
                    dataset=dataset,
                    split=split,
                    partition=partition,
                    partitions=partitions,
                    key=key,
                    sha256=sha256_of(shard),
                    rows=rows,
                    size_bytes=len(shard),
                    duration_s=0.1,
                )
            )
    return facts


def announce(settings: Settings, facts: Iterable[PartitionPrepared]) -> None:
    """Publish the facts as `deeplambda batch prepare` does."""
    with Publisher(settings) as publisher:
        for fact in facts:
            publisher.send(topics.LIFECYCLE, fact.application, fact)


def prepared_data_set(settings: Settings, application: str, rows: int = ROWS) -> str:
    """A data set that is on S3 and announced."""
    dataset = new_data_set()
    announce(settings, put_shards(settings, application, dataset, rows))
    return dataset


class SeenBars(EpochBars):
    """Shows nothing; `trained` is set as soon as a row has been trained on."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.trained = threading.Event()

    def advance(self, rows: int, loss: float) -> None:
        super().advance(rows, loss)
        self.trained.set()


def train_blobs(
    settings: Settings, packed: PackedApplication, dataset: str, bars: EpochBars | None = None, **overrides: Any
) -> TrainedRun:
    """Train without showing it."""
    return train(
        settings, packed, dataset=dataset, snapshot=1, overrides=overrides, listener=bars or SeenBars(), preparing=None
    )


def lifecycle(settings: Settings, accepted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Every record of `deeplambda.lifecycle` so far that is accepted; other tests write there what is none."""
    return _records(settings, topics.LIFECYCLE, lambda fact: "application" in fact and accepted(fact))


def champions(settings: Settings, application: str) -> list[dict[str, Any]]:
    """What the topic of champions has told of an application, compaction aside."""
    return _records(settings, topics.CHAMPIONS, lambda fact: fact["application"] == application)


def _records(settings: Settings, topic: str, accepted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    reader = consumer(settings, topic)
    try:
        (partition,) = reader.assignment()
        end, found = reader.end_offsets([partition])[partition], []
        while reader.position(partition) < end:
            for records in reader.poll(timeout_ms=500).values():
                found += [from_json(record.value) for record in records]
        return [fact for fact in found if accepted(fact)]
    finally:
        reader.close()
