"""Train: a prepared data set → a trained model, a checkpoint and an `EpochTrained` for each epoch.

1. The run's id follows from data set, code and hyperparameters; its newest whole checkpoint is where it goes on.
2. Each epoch trains on the windows that `training_data` reads; the first one already while shards are still prepared.
3. Beside the next epoch: metrics of the test split and, where there is one, of the validation split, then the
   checkpoint on S3, then `EpochTrained` on Kafka.
4. With `patience`, each epoch waits for that, for training ends when the validation split's first metric has not become
   better for so many epochs. The run's model is that of the best epoch.
A run killed between checkpoint and event publishes that event when it goes on; a finished run trains nothing.
Of several workers (`train_on_workers`) the first does step 3, and what it finds there decides for all.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import distributed

from batch_layer.checkpoint import (
    Checkpoint,
    encode,
    fetch_checkpoint,
    newest_epoch,
    run_id,
    run_prefix,
    save_checkpoint,
)
from batch_layer.compute import best_compute
from batch_layer.rows import Window
from batch_layer.shard_format import prepared_prefix
from batch_layer.trainer import Trainer, all_hyperparameters, finite_metrics, load_model_state
from batch_layer.training_data import TrainingData
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore, sha256_of
from deeplambda.application import deciding_metric
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.features import Tensor as FeatureTensor
from deeplambda.loading import PackedApplication
from deeplambda.metrics import lower_is_better
from deeplambda.records import topics
from deeplambda.records.lifecycle import EpochTrained
from deeplambda.service.metrics import MetricPublisher
from deeplambda.sources import split_names
from deeplambda.splits import TEST, VALIDATION
from deeplambda.state.card import WEIGHTS, Card, artefact_key

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")


class TrainingListener(Protocol):
    """Told how training goes on."""

    def begin(self, epoch: int, epochs: int, rows: float) -> None:
        """An epoch begins. epoch: from 1. rows: as many as it is expected to have; 0 while no shard has come."""

    def expect(self, rows: float) -> None:
        """The epoch turned out to have another number of rows."""

    def advance(self, rows: int, loss: float) -> None:
        """rows: trained on since the last call. loss: mean of the epoch so far."""

    def done(self, trained: EpochTrained) -> None:
        """The epoch's checkpoint and event are safe. Called beside the epoch that follows, from a thread of its own."""


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run. model: on the CPU, in fp32 and evaluation mode. features: what it takes.

    epochs: up to the one whose model it is, which is the last one unless training had `patience`. parent: the version
    whose weights it began from; made_anew: tensors of the head that were not taken from it.
    """

    run: str
    dataset: str
    snapshot: int
    hyperparameters: dict[str, Any]
    model: "nn.Module"
    epochs: list[EpochTrained]
    features: dict[str, FeatureTensor]
    parent: Card | None = None
    made_anew: tuple[str, ...] = ()


def train(
    settings: Settings,
    packed: PackedApplication,
    *,
    dataset: str,
    snapshot: int,
    overrides: Mapping[str, Any],
    listener: TrainingListener,
    preparing: "Future[Any] | None" = None,
    parent: Card | None = None,
) -> TrainedRun:
    """Train until the last epoch's checkpoint and event are safe.

    snapshot: what `dataset` was prepared from. overrides: of the application's hyperparameters. preparing: the job
    that prepares the data set beside this one; when it fails, so does training, at once. listener: told of each epoch.
    parent: the version whose weights it begins from.
    Raises: BadInput, CorruptObject, UnfitModel (the loss is not finite), NotReady.
    """
    with Publisher(settings) as publisher:
        return Run(settings, packed, dataset, overrides, listener, publisher, parent).trained(snapshot, preparing)


class Run:
    """One worker's part in a training run; for a worker that is alone, the whole."""

    def __init__(
        self,
        settings: Settings,
        packed: PackedApplication,
        dataset: str,
        overrides: Mapping[str, Any],
        listener: TrainingListener,
        publisher: Publisher,
        parent: Card | None = None,
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
        self._id = run_id(dataset, packed.code_version, self._hyperparameters, parent)
        self._compute = best_compute(settings.device)
        self._trainer = Trainer(self._application, self._hyperparameters, self._compute)
        self._store = ObjectStore(settings)
        self._parent = parent
        self._made_anew: tuple[str, ...] = ()
        if parent is not None:
            key = artefact_key(parent.application, parent.version, WEIGHTS)
            weights = self._store.get(key, sha256=parent.weights_sha256)
            self._made_anew = self._trainer.begin_with(weights, parent.name, parent.output_size)
        self._listener = listener
        self._publisher = publisher
        self._metrics = MetricPublisher(publisher, layer="batch", part="train", application=packed.name)
        self._waited_s = self._rows = 0.0
        self._judged_model: nn.Module

    def _say_in_use(self) -> None:
        """Upkeep removes data sets and runs that nobody touches for days."""
        name = self._application.name
        for prefix in (prepared_prefix(name, self._dataset), run_prefix(name, self._id)):
            self._store.put(f"{prefix}in-use", b"")

    def trained(self, snapshot: int, preparing: "Future[Any] | None") -> TrainedRun:
        checkpoint = self._best(self.to_the_end(preparing))
        return TrainedRun(
            run=self._id,
            dataset=self._dataset,
            snapshot=snapshot,
            hyperparameters=self._hyperparameters,
            model=self._trainer.model.cpu().eval(),
            epochs=checkpoint.epochs,
            features=checkpoint.features,
            parent=self._parent,
            made_anew=self._made_anew,
        )

    def to_the_end(self, preparing: "Future[Any] | None" = None) -> Checkpoint:
        """Every epoch that is not done yet; the last one's checkpoint, for the first worker."""
        self._say_in_use()
        checkpoint = self._resumed()
        if checkpoint is not None and self._ended(checkpoint):
            return checkpoint
        data = TrainingData(
            *(self._settings, self._application, self._dataset, self._compute),
            seed=self._hyperparameters["seed"],
            preparing=preparing,
        )
        if checkpoint is not None:
            data.wait()
        if self._compute.rank == 0:
            self._judged_model = self._trainer.fresh_model()
        finishing: Future[Checkpoint] = Future()
        finishing.set_result(checkpoint)  # type: ignore[arg-type]  # None: no epoch is done
        with ThreadPoolExecutor(1, thread_name_prefix="epoch-end") as beside:
            for epoch in range(checkpoint.epoch + 1 if checkpoint else 1, self._epochs + 1):
                ended = self._epoch(epoch, data)
                if self._compute.rank == 0:
                    finishing = beside.submit(self._finish, finishing.result(), ended, data)
                if self._patience and self._first_says(partial(self._ended_by, finishing)):
                    break
            return finishing.result()

    def _first_says(self, find: Callable[[], T]) -> T:
        """What the first worker finds, for all of them."""
        if self._compute.workers == 1:
            return find()
        found: list[Any] = [find() if self._compute.rank == 0 else None]
        distributed.broadcast_object_list(found)
        return found[0]  # type: ignore[no-any-return]

    def _ended_by(self, finishing: "Future[Checkpoint]") -> bool:
        return self._ended(finishing.result())

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
        name = self._application.name
        epoch = self._first_says(lambda: newest_epoch(self._store, name, self._id))
        if not epoch:
            return None
        checkpoint, tensors = fetch_checkpoint(self._store, name, self._id, epoch)
        self._trainer.load_state(tensors)
        if self._compute.rank == 0:
            self._publisher.send(topics.LIFECYCLE, name, checkpoint.epochs[-1])
            self._publisher.flush()
        return checkpoint

    def _epoch(self, epoch: int, data: TrainingData) -> "_EpochEnd":
        self._listener.begin(epoch, self._epochs, data.train_rows)
        self._waited_s, started_s = 0.0, time.monotonic()
        self._trainer.train_epoch(epoch, self._windows(epoch, data), lambda: self._rows, self._listener.advance)
        self._metrics.publish("shard_wait", self._waited_s, "s")
        return _EpochEnd(
            epoch=epoch,
            loss=self._trainer.mean_loss(),
            duration_s=time.monotonic() - started_s - self._waited_s,
            state=self._trainer.state(),
        )

    def _windows(self, epoch: int, data: TrainingData) -> Iterator[Window]:
        asked_s = time.monotonic()
        for window in data.epoch(epoch):
            self._waited_s += time.monotonic() - asked_s
            self._trainer.know_labels(data.label_statistics)
            self._rows = data.train_rows
            self._listener.expect(self._rows)
            yield window
            asked_s = time.monotonic()

    def _finish(self, before: Checkpoint | None, ended: "_EpochEnd", data: TrainingData) -> Checkpoint:
        """Judge the epoch's model and make the epoch safe, beside the next one."""
        load_model_state(self._judged_model, ended.state, self._application.name)
        judged = {split: self._judged(data, split) for split in (TEST, VALIDATION) if split in self._splits}
        trained = EpochTrained(
            application=self._application.name,
            run=self._id,
            epoch=ended.epoch,
            epochs=self._epochs,
            loss=ended.loss,
            metrics=judged[TEST],
            validation_metrics=judged.get(VALIDATION, {}),
            rows=round(data.train_rows),
            duration_s=ended.duration_s,
            device=self._compute.name,
        )
        encoded = encode(ended.state)
        checkpoint = Checkpoint(
            run=self._id,
            epochs=[*(before.epochs if before else []), trained],
            features=data.features,
            tensors_sha256=sha256_of(encoded),
        )
        self._say_in_use()
        save_checkpoint(self._store, self._application.name, checkpoint, encoded)
        self._publisher.send(topics.LIFECYCLE, self._application.name, trained)
        self._metrics.publish("epoch_duration", trained.duration_s, "s")
        self._metrics.publish("training_rate", trained.rows / trained.duration_s, "rows/s")
        self._metrics.publish("loss", trained.loss, "1")
        for split, metrics in judged.items():
            for name, value in metrics.items():
                self._metrics.publish(f"{split}_{name}", value, "1")
        self._publisher.flush()
        self._listener.done(trained)
        return checkpoint

    def _judged(self, data: TrainingData, split: str) -> dict[str, float]:
        given = self._application, self._judged_model, data.split(split), self._compute.device
        return finite_metrics(*given, self._hyperparameters["batch_size"])


@dataclass(frozen=True, kw_only=True)
class _EpochEnd:
    """An epoch that has been trained. duration_s: without waiting for rows. state: the trainer's."""

    epoch: int
    loss: float
    duration_s: float
    state: "dict[str, Tensor]"


def best_epoch(values: Sequence[float], *, lower: bool) -> int:
    """The first epoch, from 1, with the best of the values; 0 without any. lower: whether lower is better."""
    return values.index(min(values) if lower else max(values)) + 1 if values else 0
