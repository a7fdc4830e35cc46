"""Train: a prepared data set → a trained model, a checkpoint and an `EpochTrained` for each epoch.

1. The run's id follows from data set, code and hyperparameters; its newest whole checkpoint is where it goes on.
2. The first epoch trains on each shard as it is announced, while later ones are still being prepared.
3. Every later epoch shuffles all rows, which are in memory by then.
4. After each epoch: metrics of the test split and, where there is one, of the validation split, then the checkpoint on
   S3, then `EpochTrained` on Kafka.
5. With `patience`, training ends when the validation split's first metric has not become better for so many epochs, and
   the run's model is that of the best epoch.
A run killed between checkpoint and event publishes that event when it goes on; a finished run trains nothing.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from batch_layer.checkpoint import (
    Checkpoint,
    encode,
    fetch_checkpoint,
    newest_checkpoint,
    run_id,
    run_prefix,
    save_checkpoint,
)
from batch_layer.compute import best_compute
from batch_layer.feed import Shard, ShardFeed
from batch_layer.shard_format import prepared_prefix
from batch_layer.trainer import Rows, Trainer, all_hyperparameters
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore, sha256_of
from deeplambda.application import deciding_metric
from deeplambda.config import Settings
from deeplambda.errors import BadInput, ConfigurationError
from deeplambda.features import Tensor as FeatureTensor
from deeplambda.features import listed, specification
from deeplambda.loading import PackedApplication
from deeplambda.metrics import lower_is_better
from deeplambda.records import topics
from deeplambda.records.lifecycle import EpochTrained
from deeplambda.service.metrics import MetricPublisher
from deeplambda.sources import split_names
from deeplambda.splits import TEST, TRAIN, VALIDATION

if TYPE_CHECKING:
    from torch import nn


class TrainingListener(Protocol):
    """Told how training goes on, in the thread that trains."""

    def begin(self, epoch: int, epochs: int, rows: float) -> None:
        """An epoch begins. epoch: from 1. rows: as many as it is expected to have; 0 while no shard has come."""

    def expect(self, rows: float) -> None:
        """The epoch turned out to have another number of rows."""

    def advance(self, rows: int, loss: float) -> None:
        """rows: trained on since the last call. loss: mean of the epoch so far."""

    def done(self, trained: EpochTrained) -> None:
        """The epoch's checkpoint and event are safe."""


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run. model: on the CPU, in fp32 and evaluation mode. features: what it takes.

    epochs: up to the one whose model it is, which is the last one unless training had `patience`.
    """

    run: str
    dataset: str
    snapshot: int
    hyperparameters: dict[str, Any]
    model: "nn.Module"
    epochs: list[EpochTrained]
    features: dict[str, FeatureTensor]


def train(
    settings: Settings,
    packed: PackedApplication,
    *,
    dataset: str,
    snapshot: int,
    overrides: Mapping[str, Any],
    listener: TrainingListener,
    preparing: "Future[Any] | None" = None,
) -> TrainedRun:
    """Train until the last epoch's checkpoint and event are safe.

    snapshot: what `dataset` was prepared from. overrides: of the application's hyperparameters. preparing: the job
    that prepares the data set beside this one; when it fails, so does training, at once. listener: told of each epoch.
    Raises: BadInput, CorruptObject, UnfitModel (the loss is not finite), NotReady.
    """
    with Publisher(settings) as publisher:
        return _Run(settings, packed, dataset, overrides, listener, publisher).trained(snapshot, preparing)


@dataclass(frozen=True, kw_only=True)
class _DataSet:
    train: Rows
    test: Rows
    validation: Rows | None
    train_shards: list[int]
    features: dict[str, FeatureTensor]


class _Run:
    def __init__(
        self,
        settings: Settings,
        packed: PackedApplication,
        dataset: str,
        overrides: Mapping[str, Any],
        listener: TrainingListener,
        publisher: Publisher,
    ) -> None:
        self._settings = settings
        self._application = packed.load()
        self._splits = split_names(self._application.sources, self._application.splits)
        self._dataset = dataset
        self._hyperparameters = all_hyperparameters(self._application, overrides)
        self._epochs: int = self._hyperparameters["epochs"]
        self._patience: int = self._hyperparameters.get("patience", 0)
        if self._patience and VALIDATION not in self._splits:
            raise ConfigurationError(
                f"{packed.name} has patience {self._patience}, but no split {VALIDATION!r} to judge by",
                "let the application's splits have one, or train with --set patience=0",
            )
        self._lower_is_better = lower_is_better(self._application, deciding_metric(self._application))
        self._id = run_id(dataset, packed.code_version, self._hyperparameters)
        self._compute = best_compute()
        self._trainer = Trainer(self._application, self._hyperparameters, self._compute)
        self._store = ObjectStore(settings)
        self._listener = listener
        self._publisher = publisher
        self._metrics = MetricPublisher(publisher, layer="batch", part="train", application=packed.name)

    def _say_in_use(self) -> None:
        """Upkeep removes data sets and runs that nobody touches for days."""
        name = self._application.name
        for prefix in (prepared_prefix(name, self._dataset), run_prefix(name, self._id)):
            self._store.put(f"{prefix}in-use", b"")

    def trained(self, snapshot: int, preparing: "Future[Any] | None") -> TrainedRun:
        self._say_in_use()
        checkpoint = self._resumed()
        if checkpoint is None or not self._ended(checkpoint):
            feed = ShardFeed(self._settings, self._application, self._dataset, preparing=preparing)
            if checkpoint is None:
                rows, training_s = self._first_epoch(feed)
                checkpoint = self._finish_epoch(None, rows, training_s)
            else:
                rows = self._gathered(feed, checkpoint.train_shards)
            while not self._ended(checkpoint):
                training_s = self._epoch(checkpoint.epoch + 1, rows.train)
                checkpoint = self._finish_epoch(checkpoint, rows, training_s)
        checkpoint = self._best(checkpoint)
        return TrainedRun(
            run=self._id,
            dataset=self._dataset,
            snapshot=snapshot,
            hyperparameters=self._hyperparameters,
            model=self._trainer.model.cpu().eval(),
            epochs=checkpoint.epochs,
            features=checkpoint.features,
        )

    def _ended(self, checkpoint: Checkpoint) -> bool:
        if checkpoint.epoch >= self._epochs:
            return True
        return self._patience > 0 and checkpoint.epoch - self._best_epoch(checkpoint) >= self._patience

    def _best_epoch(self, checkpoint: Checkpoint) -> int:
        name = deciding_metric(self._application)
        measured = [epoch.validation_metrics[name] for epoch in checkpoint.epochs]
        return best_epoch(measured, lower=self._lower_is_better)

    def _best(self, checkpoint: Checkpoint) -> Checkpoint:
        """With patience, the checkpoint of the best epoch, with the trainer back in its state."""
        best = self._best_epoch(checkpoint) if self._patience else checkpoint.epoch
        if best == checkpoint.epoch:
            return checkpoint
        earlier, tensors = fetch_checkpoint(self._store, self._application.name, self._id, best)
        self._trainer.load_state(tensors)
        return earlier

    def _resumed(self) -> Checkpoint | None:
        found = newest_checkpoint(self._store, self._application.name, self._id)
        if found is None:
            return None
        checkpoint, tensors = found
        self._trainer.load_state(tensors)
        self._publisher.send(topics.LIFECYCLE, self._application.name, checkpoint.epochs[-1])
        self._publisher.flush()
        return checkpoint

    def _first_epoch(self, feed: ShardFeed) -> tuple[_DataSet, float]:
        self._listener.begin(1, self._epochs, 0)
        self._trainer.begin_epoch(1)
        arrived = _Arrived(self._splits)
        training_s = 0.0
        began_s = time.monotonic()
        with closing(iter(feed)) as shards:
            for shard in shards:
                rows = arrived.add(shard)
                if shard.announcement.split == TRAIN:
                    expected_rows = arrived.train_rows / len(arrived.order) * shard.announcement.partitions
                    self._listener.expect(expected_rows)
                    started_s = time.monotonic()
                    self._trainer.train_on(rows, expected_rows, self._listener.advance)
                    training_s += time.monotonic() - started_s
        self._metrics.publish("shard_wait", time.monotonic() - began_s - training_s, "s")
        return self._whole(arrived, arrived.order), training_s

    def _gathered(self, feed: ShardFeed, train_shards: list[int]) -> _DataSet:
        arrived = _Arrived(self._splits)
        for shard in feed:
            arrived.add(shard)
        return self._whole(arrived, train_shards)

    def _whole(self, arrived: "_Arrived", train_shards: list[int]) -> _DataSet:
        for split, of_split in arrived.of.items():
            if not any(map(len, of_split.values())):
                raise BadInput(
                    f"data set {self._dataset} of {self._application.name} has no rows in the split {split!r}",
                    "see what was ingested and what is in quarantine: 'deeplambda batch ingest'",
                )
        return _DataSet(
            train=Rows.joined([arrived.of[TRAIN][partition] for partition in train_shards]),
            test=arrived.joined(TEST),
            validation=arrived.joined(VALIDATION) if VALIDATION in arrived.of else None,
            train_shards=train_shards,
            features=arrived.features,
        )

    def _epoch(self, epoch: int, train_rows: Rows) -> float:
        self._listener.begin(epoch, self._epochs, len(train_rows))
        self._trainer.begin_epoch(epoch)
        started_s = time.monotonic()
        self._trainer.train_on(train_rows, len(train_rows), self._listener.advance)
        return time.monotonic() - started_s

    def _finish_epoch(self, before: Checkpoint | None, rows: _DataSet, training_s: float) -> Checkpoint:
        earlier = before.epochs if before else []
        trained = EpochTrained(
            application=self._application.name,
            run=self._id,
            epoch=len(earlier) + 1,
            epochs=self._epochs,
            loss=self._trainer.mean_loss(),
            metrics=self._trainer.evaluate(rows.test),
            validation_metrics=self._trainer.evaluate(rows.validation) if rows.validation else {},
            rows=len(rows.train),
            duration_s=training_s,
            device=self._compute.name,
        )
        encoded = encode(self._trainer.state())
        checkpoint = Checkpoint(
            run=self._id,
            epochs=[*earlier, trained],
            train_shards=rows.train_shards,
            features=rows.features,
            tensors_sha256=sha256_of(encoded),
        )
        self._say_in_use()
        save_checkpoint(self._store, self._application.name, checkpoint, encoded)
        self._publisher.send(topics.LIFECYCLE, self._application.name, trained)
        self._metrics.publish("epoch_duration", training_s, "s")
        self._metrics.publish("training_rate", trained.rows / training_s, "rows/s")
        self._metrics.publish("loss", trained.loss, "1")
        for name, value in trained.metrics.items():
            self._metrics.publish(f"test_{name}", value, "1")
        for name, value in trained.validation_metrics.items():
            self._metrics.publish(f"validation_{name}", value, "1")
        self._publisher.flush()
        self._listener.done(trained)
        return checkpoint


class _Arrived:
    """Shards as they come, by split and partition; `order` is that of the train shards."""

    def __init__(self, splits: Iterable[str]) -> None:
        self.of: dict[str, dict[int, Rows]] = {split: {} for split in splits}
        self.order: list[int] = []
        self.train_rows = 0
        self.features: dict[str, FeatureTensor] = {}

    def add(self, shard: Shard) -> Rows:
        rows = Rows.of(shard.features, shard.labels_N)
        if len(rows):
            found = specification(shard.features)
            self.features = self.features or found
            if found != self.features:
                raise BadInput(
                    f"the transform gives {listed(found)} in one shard and {listed(self.features)} in another",
                    "declare the application's `features`, and let it give those, whatever the batch",
                )
        if shard.announcement.split in self.of:
            self.of[shard.announcement.split][shard.announcement.partition] = rows
        if shard.announcement.split == TRAIN:
            self.order.append(shard.announcement.partition)
            self.train_rows += len(rows)
        return rows

    def joined(self, split: str) -> Rows:
        """All rows of a split in the order of its partitions; none of a split that is not asked for."""
        of_split = self.of.get(split, {})
        return Rows.joined([of_split[partition] for partition in sorted(of_split)])


def best_epoch(values: Sequence[float], *, lower: bool) -> int:
    """The first epoch, from 1, with the best of the values; 0 without any. lower: whether lower is better."""
    return values.index(min(values) if lower else max(values)) + 1 if values else 0
