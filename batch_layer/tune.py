"""Tune: an application's search space → hyperparameters that train a better model, by trials on Ray.

1. Trials are compared by the application's first metric on the validation split or, where there is none, on a sixth
   of the training rows that is set aside. None sees the test split, so what is measured there later is no luckier for
   having been tuned.
2. A trial draws its hyperparameters at random and trains as `batch train` does.
3. ASHA ends the trials that are behind after 1, 3, 9, … epochs. Source: Li et al., A System for Massively Parallel
   Hyperparameter Tuning (2020).
Rows and the application's code travel through Ray, so the nodes of a cluster need neither files nor an account on S3,
but this platform's packages, in the same versions.
"""

import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Ray reads these when it is loaded: it would report its use to its makers, frame what it is about to do, and listen on
# every address of this machine for whoever comes.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on Linux as well: a Ray of one machine, on loopback
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
import torch
from ray import tune as ray_tune
from ray.exceptions import AuthenticationError
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator
from ray.util.queue import Queue
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from batch_layer.compute import best_compute
from batch_layer.feed import ShardFeed
from batch_layer.rows import Rows, Window
from batch_layer.trainer import Trainer, all_hyperparameters
from deeplambda.adapters.kafka import Publisher
from deeplambda.application import Application, Choice, LogUniform, deciding_metric
from deeplambda.config import Settings
from deeplambda.errors import BadInput, DeepLambdaError, NotReady, UnfitModel
from deeplambda.loading import PackedApplication
from deeplambda.metrics import lower_is_better
from deeplambda.objective import statistics_of
from deeplambda.service.metrics import MetricPublisher
from deeplambda.splits import TRAIN, VALIDATION

VALIDATION_SHARE = 1 / 6
REDUCTION_FACTOR = 3
"""One trial in so many is let train on at each of ASHA's halts."""
WORKER_BYTES = 512 << 20
"""What a worker with PyTorch and a small model takes beyond the shared rows; Ray runs no more than the memory holds."""
_Arrays = tuple[dict[str, NDArray[Any]], NDArray[Any]]
"""Features and labels of `Rows`, as Ray shares them without copies."""
_METRIC, _FAILURE = "validation", "failure"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """drawn: its values from the search space. epochs: that it was let train. metric: of the rows set aside, after the
    last of them; infinitely bad with a `failure`, the sentence that says why there is none."""

    drawn: dict[str, Any]
    epochs: int
    metric: float
    failure: str = ""


def tune(
    settings: Settings,
    packed: PackedApplication,
    *,
    dataset: str,
    overrides: Mapping[str, Any],
    trials: int,
    ended: Callable[[], None] = lambda: None,
) -> list[Trial]:
    """The trials, best first.

    dataset: one that is wholly prepared. overrides: of the application's hyperparameters that are not in its search
    space; the draws follow from `seed`. ended: called when a trial is over.
    Raises: BadInput when there is nothing to search or to train on, UnfitModel when every trial failed,
    CorruptObject, NotReady (no Ray at the address).
    """
    application = packed.load()
    fixed = all_hyperparameters(application, overrides)
    space = _search_space(application, overrides)
    lower = lower_is_better(application, deciding_metric(application))
    training, validation = _rows_of_trials(settings, application, dataset)
    with _ray(settings, packed):
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        trainable = ray_tune.with_parameters(
            _trial, packed=packed, fixed=fixed, training=_arrays(training), validation=_arrays(validation)
        )
        with _listened(ended) as ends:
            found = ray_tune.Tuner(
                ray_tune.with_resources(trainable, {"cpu": 1, "gpu": gpus, "memory": WORKER_BYTES}),
                param_space=space,
                tune_config=ray_tune.TuneConfig(
                    metric=_METRIC,
                    mode="min" if lower else "max",
                    num_samples=trials,
                    scheduler=ASHAScheduler(max_t=fixed["epochs"], reduction_factor=REDUCTION_FACTOR),
                    search_alg=BasicVariantGenerator(random_state=fixed["seed"]),
                    reuse_actors=True,  # a worker that starts anew for each trial spends seconds on loading torch
                ),
                run_config=ray_tune.RunConfig(
                    name=f"{packed.name}-{dataset}",
                    storage_path=f"{tempfile.gettempdir()}/ray/tuning",  # a place that every node has
                    callbacks=[_Ends(ends)],
                    verbose=0,
                ),
            ).fit()
        ended_trials = [_trial_of(result, _worst(lower)) for result in found]
        best_first = sorted(ended_trials, key=lambda trial: trial.metric, reverse=not lower)
    if failure := best_first[0].failure:
        raise UnfitModel(f"every trial of {packed.name} failed: {failure}", "narrow the application's search_space")
    with Publisher(settings) as publisher:
        metrics = MetricPublisher(publisher, layer="batch", part="tune", application=packed.name)
        metrics.publish(f"best_validation_{deciding_metric(application)}", best_first[0].metric, "1")
        metrics.publish("trials", len(best_first), "1")
    return best_first


def _search_space(application: Application, overrides: Mapping[str, Any]) -> dict[str, Any]:
    space = {name: values for name, values in application.search_space.items() if name not in overrides}
    if not space:
        raise BadInput(f"{application.name} has nothing to search", "give it a search_space, or --set less")
    if "epochs" in space:
        raise BadInput("epochs is in the search space", "leave it out: ASHA decides how long a trial trains")
    all_hyperparameters(application, {name: _some(values) for name, values in space.items()})
    return {
        name: ray_tune.choice(list(values.values))
        if isinstance(values, Choice)
        else ray_tune.loguniform(values.low, values.high)
        for name, values in space.items()
    }


def _some(values: Choice | LogUniform) -> Any:
    return values.values[0] if isinstance(values, Choice) else values.low


def _rows_of_trials(settings: Settings, application: Application, dataset: str) -> tuple[Rows, Rows]:
    """What trials train on, and what they are compared on: as many shards of each split as fit the trainer's memory."""
    shards: dict[str, dict[int, Rows]] = {TRAIN: {}, VALIDATION: {}}
    room_bytes, left_out = settings.trainer_memory_mb * 2**20, 0
    for shard in ShardFeed(settings, application, dataset):
        announcement = shard.announcement
        if announcement.split in shards and announcement.size_bytes <= room_bytes:
            room_bytes -= announcement.size_bytes
            shards[announcement.split][announcement.partition] = Rows.of(shard.features, shard.labels_N)
        elif announcement.split in shards:
            left_out += 1
    if left_out:
        _log.warning("trials do without %d shards, which DEEPLAMBDA_TRAINER_MEMORY_MB has no room for", left_out)
    training, validation = (_joined([of[partition] for partition in sorted(of)]) for of in shards.values())
    if len(training) and len(validation):
        return training, validation
    if len(training) * VALIDATION_SHARE < 1:
        raise BadInput(
            f"data set {dataset} of {application.name} has too few training rows to set some aside", "ingest more"
        )
    return _set_aside(training)


def _joined(shards: list[Rows]) -> Rows:
    return Rows.joined(shards, sum(map(len, shards)))


def _set_aside(rows: Rows) -> tuple[Rows, Rows]:
    """The rows divided; equal rows are divided equally."""
    shuffled_N = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    validation_N, training_N = shuffled_N.tensor_split([round(len(rows) * VALIDATION_SHARE)])
    return rows.chosen(training_N), rows.chosen(validation_N)


@contextmanager
def _ray(settings: Settings, packed: PackedApplication) -> Iterator[None]:
    """Ray, and on every worker the application's code: on the cluster, or on this machine until the end."""
    address = settings.ray_address
    os.environ["RAY_AUTH_TOKEN"] = settings.ray_token.get_secret_value()
    here = {} if address else {"include_dashboard": False}
    # Once in a while the process that a cluster forks for a client dies at once.
    again = Retrying(retry=retry_if_exception_type(ConnectionAbortedError), stop=stop_after_attempt(3), reraise=True)
    try:
        with warnings.catch_warnings(action="ignore"):  # what they tell of is raised as well
            again(
                ray.init,
                address=address or "local",
                runtime_env={"working_dir": str(packed.zip_file)},
                log_to_driver=False,
                logging_level=logging.ERROR,
                **here,
            )
    except (ConnectionError, RuntimeError, AuthenticationError) as exc:
        raise NotReady(
            f"Ray does not answer at {address or 'this machine'}: {exc}",
            f"see that it takes the token DEEPLAMBDA_RAY_TOKEN, and runs Ray {ray.__version__} and Python "
            f"{platform.python_version()} as this machine does",
        ) from exc
    try:
        yield
    finally:
        ray.shutdown()


class _Ends(ray_tune.Callback):  # type: ignore[misc]
    """Runs where Ray Tune does, which may be the cluster: it tells through a queue."""

    def __init__(self, ends: Queue) -> None:
        self._ends = ends

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ends.put(True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ends.put(True)


@contextmanager
def _listened(ended: Callable[[], None]) -> Iterator[Queue]:
    """A queue from which `ended` is called for each item until the context ends."""
    ends = Queue(actor_options={"num_cpus": 0})

    def listen() -> None:
        while ends.get():
            ended()

    thread = Thread(target=listen, name="trial-ends", daemon=True)
    thread.start()
    try:
        yield ends
    finally:
        ends.put(False)
        thread.join()


def _trial(
    drawn: dict[str, Any],
    *,
    packed: PackedApplication,
    fixed: dict[str, Any],
    training: _Arrays,
    validation: _Arrays,
) -> None:
    """One trial, in a worker of Ray's. The rows are in memory that all workers of a node share."""
    torch.set_num_threads(1)
    application = packed.load()
    training_rows, validation_rows = _rows(training), _rows(validation)
    trainer = Trainer(application, all_hyperparameters(application, fixed | drawn), best_compute())
    trainer.know_labels(statistics_of(application.objective, training_rows.labels_N.numpy()))
    metric = deciding_metric(application)
    worst = _worst(lower_is_better(application, metric))
    for epoch in range(1, fixed["epochs"] + 1):
        try:
            trainer.train_epoch(epoch, [Window.whole(training_rows)], lambda: len(training_rows))
            ray_tune.report({_METRIC: trainer.evaluate([validation_rows])[metric]})
        except UnfitModel as exc:
            ray_tune.report({_METRIC: worst, _FAILURE: exc.message})
            return


def _arrays(rows: Rows) -> _Arrays:
    return {name: tensor.numpy() for name, tensor in rows.features.items()}, rows.labels_N.numpy()


def _rows(arrays: _Arrays) -> Rows:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to rows
        features, labels_N = arrays
        return Rows({name: torch.from_numpy(array) for name, array in features.items()}, torch.from_numpy(labels_N))


def _worst(lower: bool) -> float:
    """Of a metric, what no trial that succeeds is as bad as. lower: whether lower is better."""
    return np.inf if lower else -np.inf


def _trial_of(result: Any, worst: float) -> Trial:
    told = result.metrics or {}
    failure = told.get(_FAILURE, "")
    if result.error is not None:
        cause = getattr(result.error, "cause", None) or result.error
        failure = cause.message if isinstance(cause, DeepLambdaError) else str(cause).strip().splitlines()[-1]
    return Trial(
        drawn=dict(result.config),
        epochs=told.get("training_iteration", 0),
        metric=worst if failure else told[_METRIC],
        failure=failure,
    )
