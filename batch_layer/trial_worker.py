"""A trial at work, in a worker of Ray's: it trains, reports to ASHA, and sends home what is to be stored.

Whoever imports this has imported `batch_layer.ray_environment` before.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from ray import tune as ray_tune
from ray.util.queue import Queue

from batch_layer.checkpoint import decode, encode
from batch_layer.compute import best_compute
from batch_layer.rows import Rows, Window
from batch_layer.trainer import Trainer, all_hyperparameters
from batch_layer.trials import Trial, key_of
from deeplambda.application import deciding_metric
from deeplambda.errors import DeepLambdaError
from deeplambda.loading import PackedApplication
from deeplambda.metrics import lower_is_better
from deeplambda.objective import statistics_of

METRIC = "validation"
"""What Ray calls the deciding metric."""
Arrays = tuple[dict[str, NDArray[Any]], NDArray[Any]]
"""Features and labels of `Rows`, as Ray shares them without copies."""


class Told(NamedTuple):
    """News of a trial. metric: of the epoch after those before. tensors: after it, as safetensors."""

    drawn: dict[str, Any]
    metric: float | None = None
    tensors: bytes | None = None
    failure: str = ""
    ended: bool = False


class Known(NamedTuple):
    """What a trial goes on from. tensors: None where it has not trained, or trains no more."""

    trial: Trial
    tensors: bytes | None


def run_trial(
    drawn: dict[str, Any],
    *,
    packed: PackedApplication,
    fixed: dict[str, Any],
    cpus: float,
    known: dict[str, Known],
    news: Queue,
    training: Arrays,
    validation: Arrays,
) -> None:
    """One trial, in a worker of Ray's. The rows are in memory that all workers of a node share."""
    before, tensors = known.get(key_of(drawn), Known(Trial(drawn=drawn), None))
    application = packed.load()
    worst = _worst(lower_is_better(application, deciding_metric(application)))
    for metric in before.metrics:
        ray_tune.report({METRIC: metric})
    if before.ended:
        if before.failure:
            ray_tune.report({METRIC: worst})
        return
    torch.set_num_threads(max(1, int(cpus)))
    try:
        training_rows, validation_rows = _rows(training), _rows(validation)
        trainer = Trainer(application, all_hyperparameters(application, fixed | drawn), best_compute())
        trainer.know_labels(statistics_of(application.objective, training_rows.labels_N.numpy()))
        if tensors is not None:
            trainer.load_state(decode(tensors, f"the checkpoint of trial {drawn}"))
        for epoch in range(before.epochs + 1, fixed["epochs"] + 1):
            trainer.train_epoch(epoch, [Window.whole(training_rows)], lambda: len(training_rows))
            metric = trainer.evaluate([validation_rows])[deciding_metric(application)]
            news.put(Told(drawn, metric, encode(trainer.state())))
            ray_tune.report({METRIC: metric})
    except DeepLambdaError as exc:
        news.put(Told(drawn, failure=exc.message))
        ray_tune.report({METRIC: worst})


def arrays_of(rows: Rows) -> Arrays:
    """Rows, to be shared."""
    return {name: tensor.numpy() for name, tensor in rows.features.items()}, rows.labels_N.numpy()


def _rows(arrays: Arrays) -> Rows:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to rows
        features, labels_N = arrays
        return Rows({name: torch.from_numpy(array) for name, array in features.items()}, torch.from_numpy(labels_N))


def _worst(lower: bool) -> float:
    """Of a metric, what no trial that succeeds is as bad as. lower: whether lower is better."""
    return np.inf if lower else -np.inf
