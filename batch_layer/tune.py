"""Tune: an application's search space → hyperparameters that train a better model, by trials on Ray.

1. Trials are compared by the application's first metric on the validation split or, where there is none, on a sixth
   of the training rows that is set aside (`batch_layer.trial_rows`). None sees the test split, so what is measured
   there later is no luckier for having been tuned.
2. The first trial has the application's own hyperparameters, or those of a generation's champion. The next draws are
   made by a tree-structured Parzen estimator from what the trials before have reached, none twice
   (`batch_layer.search`). Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization (2011), by Optuna.
3. ASHA ends the trials that are behind after 1, 3, 9, … epochs. Source: Li et al., A System for Massively Parallel
   Hyperparameter Tuning (2020).
4. After each epoch a trial's metrics and tensors are stored on S3 (`batch_layer.trials`), before ASHA hears of it.
5. A tuning that was broken off goes on: each trial on S3 is begun again, tells what it has reached without training,
   and trains on from its tensors unless it had ended. So ASHA and the estimator know what they knew.
Rows and the application's code travel through Ray, and what is to be stored comes back by it: the nodes of a cluster
need neither files nor an account on S3, but this platform's packages, in the same versions.
"""

import logging
import math
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Thread
from typing import Any

import batch_layer.ray_environment  # noqa: F401

# isort: split
import ray
from ray import tune as ray_tune
from ray.exceptions import AuthenticationError
from ray.tune.schedulers import ASHAScheduler
from ray.util.queue import Queue
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from batch_layer.checkpoint import run_id
from batch_layer.search import choices_of, mode_of, search_space, searcher
from batch_layer.trainer import all_hyperparameters
from batch_layer.trial_rows import rows_of_trials
from batch_layer.trial_worker import METRIC, Known, Told, arrays_of, run_trial
from batch_layer.trials import Trial, TrialStore, key_of
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import deciding_metric
from deeplambda.config import Settings
from deeplambda.errors import BadInput, NotReady, UnfitModel
from deeplambda.loading import PackedApplication
from deeplambda.metrics import lower_is_better
from deeplambda.service.loops import in_one_line
from deeplambda.service.metrics import MetricPublisher

REDUCTION_FACTOR = 3
"""One trial in so many is let train on at each of ASHA's halts."""
WORKER_BYTES = 512 << 20
"""What a worker with PyTorch and a small model takes beyond the shared rows; Ray runs no more than the memory holds."""
_TOLD_AT_ONCE = 8
"""Epochs that wait to be stored; trials wait until S3 has caught up."""
_log = logging.getLogger(__name__)


def tune(
    settings: Settings,
    packed: PackedApplication,
    *,
    dataset: str,
    overrides: Mapping[str, Any],
    trials: int,
    first: Mapping[str, Any] | None = None,
    cpus: float = 1,
    gpus: float | None = None,
    told: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """The trials, best first; running it again goes on, or adds to them when `trials` is more than there are. There are
    no more than the search space has draws. Ray is started only where there is something left to train.

    dataset: one that is wholly prepared. overrides: of the application's hyperparameters that are not in its search
    space. first: what the first trial has of the search space, in place of the application's own. cpus, gpus: that a
    trial has, or its share of one; None: a GPU where the machine or cluster has some. told: called with each state of
    each trial, from a thread of its own.
    Raises: BadInput when there is nothing to search or to train on, UnfitModel when every trial failed,
    CorruptObject, NotReady (no Ray at the address; S3).
    """
    application = packed.load()
    fixed = all_hyperparameters(application, overrides)
    space = search_space(application, overrides)
    choices = choices_of(application, space)
    if choices is not None and (draws := math.prod(map(len, choices.values()))) < trials:
        _log.warning("the search space of %s has %d draws: there are no more trials", application.name, draws)
        trials = draws
    lower = lower_is_better(application, deciding_metric(application))
    study = run_id(dataset, packed.code_version, fixed | {"search_space": sorted(space)})
    kept = _Kept(TrialStore(ObjectStore(settings), packed.name, study), told)
    known = kept.known()
    training, validation = rows_of_trials(settings, application, dataset)
    died = list[Trial]()
    if len(known) < trials or not all(each.trial.ended for each in known.values()):
        with _ray(settings, packed), _listened(kept.take) as news:
            trainable = ray_tune.with_parameters(
                run_trial,
                packed=packed,
                fixed=fixed,
                cpus=cpus,
                known=known,
                news=news,
                training=arrays_of(training),
                validation=arrays_of(validation),
            )
            if gpus is None:
                gpus = 1 if ray.cluster_resources().get("GPU") else 0
            found = ray_tune.Tuner(
                ray_tune.with_resources(trainable, {"cpu": cpus, "gpu": gpus, "memory": WORKER_BYTES}),
                tune_config=ray_tune.TuneConfig(
                    num_samples=max(trials, len(known)),
                    scheduler=ASHAScheduler(
                        metric=METRIC, mode=mode_of(lower), max_t=fixed["epochs"], reduction_factor=REDUCTION_FACTOR
                    ),
                    search_alg=searcher(
                        application, space, lower, fixed | dict(first or {}), [each.trial for each in known.values()]
                    ),
                    reuse_actors=True,  # a worker that starts anew for each trial spends seconds on loading torch
                ),
                run_config=ray_tune.RunConfig(
                    name=f"{packed.name}-{study}",
                    storage_path=f"{tempfile.gettempdir()}/ray/tuning",  # Ray's own notes, where every node has a place
                    callbacks=[_Ends(news)],
                    verbose=0,
                ),
            ).fit()
        died = [_of_the_dead(result) for result in found if result.error is not None]
    best_first = sorted(
        (kept.trials | {trial.key: trial for trial in died}).values(), key=lambda trial: _rank(trial, lower)
    )
    best = best_first[0]
    if best.failure or not best.metrics:
        reason = best.failure or "none has trained an epoch"
        raise UnfitModel(f"every trial of {packed.name} failed: {reason}", "narrow the application's search_space")
    with Publisher(settings) as publisher:
        metrics = MetricPublisher(publisher, layer="batch", part="tune", application=packed.name)
        metrics.publish(f"best_validation_{deciding_metric(application)}", best.metrics[-1], "1")
        metrics.publish("trials", len(best_first), "1")
    return best_first


class _Kept:
    """The study's trials, here and on S3: `take` is told of each epoch and of each end."""

    def __init__(self, store: TrialStore, told: Callable[[Trial], None]) -> None:
        self.trials = {trial.key: trial for trial in store.trials()}
        self._store, self._told = store, told

    def known(self) -> dict[str, Known]:
        """By key, what is on S3 already. A trial whose tensors are not whole is begun anew."""
        found = {}
        for key, trial in self.trials.items():
            try:
                found[key] = Known(trial, self._store.tensors(trial) if trial.tensors_sha256 else None)
            except BadInput as exc:
                _log.warning("trial %s is begun anew: %s", trial.drawn, exc)
                self.trials[key] = Trial(drawn=trial.drawn)
                found[key] = Known(self.trials[key], None)
            self._told(self.trials[key])
        return found

    def take(self, news: Told) -> None:
        """Store what is new of a trial, and tell of it."""
        before = self.trials.get(key_of(news.drawn), Trial(drawn=news.drawn))
        if before.ended:  # it only told again what it had reached
            return
        metrics = before.metrics if news.metric is None else (*before.metrics, news.metric)
        failure = news.failure or (before.failure if news.ended else "")
        changed = {"metrics": metrics, "failure": failure, "ended": news.ended}
        if news.ended:
            changed["tensors_sha256"] = ""
        trial = self._store.put(before.model_copy(update=changed), news.tensors, before)
        self.trials[trial.key] = trial
        self._told(trial)


def _rank(trial: Trial, lower: bool) -> tuple[bool, float, int, str]:
    """The lowest is the best; of equal ones, what has trained for longest."""
    failed = bool(trial.failure) or not trial.metrics
    metric = 0 if failed else trial.metrics[-1]
    return failed, metric if lower else -metric, -trial.epochs, trial.key


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
    """Runs where Ray Tune does, which may be the cluster: it tells through a queue.

    A trial whose worker died has not ended: it goes on when the tuning is run again.
    """

    def __init__(self, news: Queue) -> None:
        self._news = news

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._news.put(Told(trial.config, ended=True))


@contextmanager
def _listened(take: Callable[[Told], None]) -> Iterator[Queue]:
    """A queue of which `take` gets each item, until the context ends. Raises: what `take` raised first."""
    news, failures = Queue(_TOLD_AT_ONCE, actor_options={"num_cpus": 0}), list[Exception]()

    def listen() -> None:
        while (told := news.get()) is not None:
            try:
                if not failures:
                    take(told)
            except Exception as exc:  # the trials go on to their end, or they would wait for ever
                failures.append(exc)

    thread = Thread(target=listen, name="trials", daemon=True)
    thread.start()
    try:
        yield news
    finally:
        news.put(None)
        thread.join()
    if failures:
        raise failures[0]


def _of_the_dead(result: Any) -> Trial:
    """A trial whose worker did not end by itself, and why."""
    cause = getattr(result.error, "cause", None) or result.error
    return Trial(drawn=dict(result.config), failure=in_one_line(cause))
