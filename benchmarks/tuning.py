"""Epochs that tuning trains until a trial is as good as the best of a random search, against all of that search's.

Both draw from the same space and train on the same rows: scikit-learn's digits, 1,198 to train on and 599 to compare
trials on. The random search trains each of its trials to the end, as one without a scheduler does; its best accuracy is
the target. Which trial is the best is known when all have ended, so all their epochs count, and those after the first
that was as good too. The application's own hyperparameters lie outside of its space, or tuning would try them first.

Single seeds differ by a factor of ten, for the target is the luckiest of the random search's trials: so the median of
several is taken, and a tuning that ends without a trial as good counts as one that never does.
"""

import math
import statistics
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np
import torch
from sklearn.datasets import load_digits

from batch_layer.compute import best_compute
from batch_layer.rows import Rows, Window
from batch_layer.search import search_space
from batch_layer.shard_format import shard_key, write_shard
from batch_layer.trainer import Trainer, all_hyperparameters
from batch_layer.trials import Trial
from batch_layer.tune import tune
from benchmarks.ratio import Ratio
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore, sha256_of
from deeplambda.application import Application
from deeplambda.config import Settings, load_settings
from deeplambda.features import SINGLE
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.objective import statistics_of
from deeplambda.records import topics
from deeplambda.records.lifecycle import PartitionPrepared

NAME = "epochs of tuning"
AIM = 0.3
BASELINE = "the whole of a random search"
SEEDS = (1, 2, 3, 4, 5)
TRIALS, EPOCHS = 24, 27
TRAINING = 1_198

_SOURCE = """
import numpy as np
from deeplambda.application import Application, Choice, Event, LogUniform, Source
from deeplambda.objective import Classification


class DigitSeen(Event):
    pixels: list[float]


class Digits(Application):
    name = "{name}"
    event = DigitSeen
    sources = tuple(Source(split=split, objects=(split,)) for split in ("train", "validation", "test"))
    objective = Classification(classes="0123456789")
    metrics = ("accuracy",)
    hyperparameters = dict(
        epochs={epochs}, batch_size=100, learning_rate=10.0, weight_decay=0.0, layers=0, hidden=0, dropout=0.0
    )
    search_space = dict(
        learning_rate=LogUniform(1e-5, 1.0),
        weight_decay=LogUniform(1e-5, 1.0),
        batch_size=Choice((16, 32, 64, 128, 256)),
        layers=Choice((0, 1, 2, 3)),
        hidden=Choice((4, 8, 16, 32, 64, 128)),
        dropout=Choice((0.0, 0.2, 0.4, 0.6)),
    )

    def examples(self, source, raw):
        return iter(())

    def transform(self, batch):
        return np.array(batch["pixels"].to_pylist(), dtype=np.float32)

    def build_model(self, *, layers, hidden, dropout):
        from torch import nn

        sizes = [64] + [hidden] * layers
        pieces = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in zip(sizes, sizes[1:])]
        return nn.Sequential(*(layer for piece in pieces for layer in piece), nn.Linear(sizes[-1], 10))
"""


def measure() -> Ratio:
    """The median over the seeds. Raises: LookupError when most tunings ended without a trial as good."""
    settings, random = load_settings(), TRIALS * EPOCHS
    spent = list[float]()
    with TemporaryDirectory() as folder:
        for seed in SEEDS:
            packed = _application(settings, Path(folder))
            training, validation = _rows(seed)
            target = _random_search(packed.load(), training, validation, seed)
            tuned = _epochs_until(settings, packed, _put(settings, packed.name, training, validation), seed, target)
            print(f"seed {seed}: accuracy {target:.4f} after {tuned} epochs of {random}", file=sys.stderr, flush=True)
            spent.append(tuned)
    measured = statistics.median(spent)
    if math.isinf(measured):
        raise LookupError(f"most of {len(SEEDS)} tunings ended before a trial was as good as the random search's best")
    return Ratio(
        name=NAME,
        value=measured / random,
        baseline_name=BASELINE,
        baseline=random,
        measured=measured,
        unit="epochs",
        aim=AIM,
        higher_is_better=False,
    )


def _application(settings: Settings, folder: Path) -> PackedApplication:
    home = folder / f"tuned_{uuid4().hex[:8]}"
    home.mkdir()
    (home / "application.py").write_text(_SOURCE.format(name=home.name, epochs=EPOCHS))
    return pack_application(str(home), settings)


def _rows(seed: int) -> tuple[Rows, Rows]:
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    rows = Rows.of({SINGLE: (digits.data[order] / 16).astype(np.float32)}, digits.target[order].astype(np.int64))
    return rows.part(slice(TRAINING)), rows.part(slice(TRAINING, None))


def _put(settings: Settings, application: str, training: Rows, validation: Rows) -> str:
    """Put the rows on S3 as a prepared data set; its id."""
    store, dataset = ObjectStore(settings), uuid4().hex[:16]
    with Publisher(settings) as publisher:
        for split, rows in {"train": training, "validation": validation, "test": validation}.items():
            shard = write_shard({name: each.numpy() for name, each in rows.features.items()}, rows.labels_N.numpy())
            key = shard_key(application, dataset, split, 0)
            store.put(key, shard)
            fact = PartitionPrepared(
                application=application,
                dataset=dataset,
                split=split,
                partition=0,
                partitions=1,
                key=key,
                sha256=sha256_of(shard),
                rows=len(rows),
                size_bytes=len(shard),
                duration_s=0,
            )
            publisher.send(topics.LIFECYCLE, application, fact)
    return dataset


def _random_search(application: Application, training: Rows, validation: Rows, seed: int) -> float:
    """The best accuracy of `TRIALS` trials after `EPOCHS` epochs each."""
    torch.set_num_threads(1)
    randomness, best = np.random.RandomState(seed), 0.0
    for _ in range(TRIALS):
        drawn = {name: values.sample(random_state=randomness) for name, values in search_space(application, {}).items()}
        trainer = Trainer(application, all_hyperparameters(application, drawn), best_compute())
        trainer.know_labels(statistics_of(application.objective, training.labels_N.numpy()))
        for epoch in range(1, EPOCHS + 1):
            trainer.train_epoch(epoch, [Window.whole(training)], lambda: len(training))
        best = max(best, trainer.evaluate([validation])["accuracy"])
    return best


def _epochs_until(settings: Settings, packed: PackedApplication, dataset: str, seed: int, target: float) -> float:
    """Epochs that all trials of a tuning had trained when the first was as good as `target`; infinite if none was."""
    trained, spent = Counter[str](), list[int]()

    def told(trial: Trial) -> None:
        trained[trial.key] = trial.epochs
        if trial.metrics and trial.metrics[-1] >= target and not spent:
            spent.append(trained.total())

    tune(settings, packed, dataset=dataset, overrides={"seed": seed}, trials=2 * TRIALS, told=told)
    return spent[0] if spent else math.inf
