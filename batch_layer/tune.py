"""Tune: an application's search space → hyperparameters that train a better model, by trials on Ray.

1. Trials are compared by the application's first metric on the validation split or, where there is none, on a sixth
   of the training rows that is set aside. None sees the test split, so what is measured there later is no luckier for
   having been tuned.
2. The first trial has the application's own hyperparameters, or those of a generation's champion. The next draws are
   made by a tree-structured Parzen estimator from what the trials before have reached, none twice. Source: Bergstra et
   al., Algorithms for Hyper-Parameter Optimization (2011), by Optuna.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, product
from threading import Thread
from typing import Any

from pydantic_core import to_json

# Ray reads these when it is loaded: it would report its use to its makers, frame what it is about to do, and listen on
# every address of this machine for whoever comes.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on Linux as well: a Ray of one machine, on loopback
os.environ.setdefault("RAY_AUTH_MODE", "token")

import optuna
import ray
import torch
from ray import tune as ray_tune
from ray.exceptions import AuthenticationError
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.util.queue import Queue
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from batch_layer.checkpoint import run_id
from batch_layer.feed import ShardFeed, fetch_shard
from batch_layer.rows import Rows
from batch_layer.trainer import all_hyperparameters
from batch_layer.trial_worker import METRIC, Known, Told, arrays_of, run_trial
from batch_layer.trials import Trial, TrialStore, key_of
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application, Choice, LogUniform, deciding_metric, learns
from deeplambda.config import Settings
from deeplambda.errors import BadInput, NotReady, UnfitModel
from deeplambda.loading import PackedApplication
from deeplambda.metrics import lower_is_better
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.service.loops import in_one_line
from deeplambda.service.metrics import MetricPublisher
from deeplambda.splits import TRAIN, VALIDATION, ByTime

VALIDATION_SHARE = 1 / 6
REDUCTION_FACTOR = 3
"""One trial in so many is let train on at each of ASHA's halts."""
RANDOM_TRIALS = 5
"""Drawn at random before the estimator has enough to go by."""
WORKER_BYTES = 512 << 20
"""What a worker with PyTorch and a small model takes beyond the shared rows; Ray runs no more than the memory holds."""
_TOLD_AT_ONCE = 8
"""Epochs that wait to be stored; trials wait until S3 has caught up."""
_DRAWN_AGAIN = 20
"""So often a draw that was made before is made again, before one that was not is taken whatever the estimator says."""
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
    choices = _choices(application, space)
    if choices is not None and (draws := math.prod(map(len, choices.values()))) < trials:
        _log.warning("the search space of %s has %d draws: there are no more trials", application.name, draws)
        trials = draws
    lower = lower_is_better(application, deciding_metric(application))
    study = run_id(dataset, packed.code_version, fixed | {"search_space": sorted(space)})
    kept = _Kept(TrialStore(ObjectStore(settings), packed.name, study), told)
    known = kept.known()
    training, validation = _rows_of_trials(settings, application, dataset)
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
                        metric=METRIC, mode=_mode(lower), max_t=fixed["epochs"], reduction_factor=REDUCTION_FACTOR
                    ),
                    search_alg=_searcher(
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


def _mode(lower: bool) -> str:
    return "min" if lower else "max"


def _rank(trial: Trial, lower: bool) -> tuple[bool, float, int, str]:
    """The lowest is the best; of equal ones, what has trained for longest."""
    failed = bool(trial.failure) or not trial.metrics
    metric = 0 if failed else trial.metrics[-1]
    return failed, metric if lower else -metric, -trial.epochs, trial.key


class _EachOnce(OptunaSearch):  # type: ignore[misc]
    """Makes no draw twice: a trial is known by its draw, and another one would train the same once more.

    choices: by name, where the search space has no other values.
    """

    def __init__(self, space: dict[str, Any], choices: Mapping[str, Sequence[Any]] | None, **others: Any) -> None:
        super().__init__(space, **others)
        self._choices, self._drawn = choices, set[str]()

    def suggest(self, trial_id: str) -> Any:
        for _ in range(_DRAWN_AGAIN):
            drawn = super().suggest(trial_id)
            if self._take(drawn):
                return drawn
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=optuna.trial.TrialState.FAIL)  # tells it nothing
        names, values = (self._choices or {}).keys(), (self._choices or {}).values()
        left = (dict(zip(names, each, strict=True)) for each in product(*values))
        if self._choices is None or (drawn := next(filter(self._take, left), None)) is None:
            return Searcher.FINISHED
        self._ot_study.enqueue_trial(drawn)
        return super().suggest(trial_id)

    def _take(self, drawn: Mapping[str, Any]) -> bool:
        """Whether it is new; it is not, from now on."""
        key = key_of(drawn)
        new = key not in self._drawn
        self._drawn.add(key)
        return new


def _choices(application: Application, space: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """Of each name in the search space, its values, each once; None where one of them is drawn from numbers."""
    found = {}
    for name in space:
        there = application.search_space[name]
        if isinstance(there, LogUniform) and there.low < there.high:
            return None
        values = there.values if isinstance(there, Choice) else (float(there.low),)
        found[name] = list({to_json(value): value for value in values}.values())
    return found


def _searcher(
    application: Application, space: dict[str, Any], lower: bool, fixed: Mapping[str, Any], known: list[Trial]
) -> OptunaSearch:
    """Draws what is known first. Its seed counts that in, or it would draw the same once more."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    numbers = {name for name in space if isinstance(application.search_space[name], LogUniform)}
    own = {name: float(fixed[name]) if name in numbers else fixed[name] for name in space}
    points = [_as_declared(application, trial.drawn) for trial in known]
    if not points and _draws(application, own):
        points = [own]
    return _EachOnce(
        OptunaSearch.convert_search_space(space),
        _choices(application, space),
        metric=METRIC,
        mode=_mode(lower),
        points_to_evaluate=points,
        sampler=optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=fixed["seed"] + len(known)),
    )


def _as_declared(application: Application, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the search space has them: JSON knows no tuples."""

    def declared(name: str, value: Any) -> Any:
        there = application.search_space[name]
        values = there.values if isinstance(there, Choice) else (value,)
        return next((each for each in values if to_json(each) == to_json(value)), value)

    return {name: declared(name, value) for name, value in drawn.items()}


def _draws(application: Application, values: Mapping[str, Any]) -> bool:
    """Whether the search space has these values in it."""
    return all(
        values[name] in there.values if isinstance(there, Choice) else there.low <= values[name] <= there.high
        for name, there in application.search_space.items()
        if name in values
    )


def search_space(application: Application, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What trials draw from, as Ray has it: the application's, without what is set. Raises: BadInput."""
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
    store, listed = ObjectStore(settings), list(ShardFeed(settings, application, dataset).announced())
    chosen = _with_room(listed, settings.trainer_memory_mb * 2**20)
    if left_out := sum(each.split in chosen for each in listed) - sum(map(len, chosen.values())):
        _log.warning("trials do without %d shards, which DEEPLAMBDA_TRAINER_MEMORY_MB has no room for", left_out)
    fetched = ((fetch_shard(store, each) for each in of_split) for of_split in chosen.values())
    training, validation = (_joined([Rows.of(each.features, each.labels_N) for each in of]) for of in fetched)
    if len(training) and len(validation):
        return training, validation
    if any(each.split == VALIDATION and each.rows for each in listed):
        _log.warning("trials have no room for a shard of each split: give more DEEPLAMBDA_TRAINER_MEMORY_MB")
    if len(training) * VALIDATION_SHARE < 1:
        raise BadInput(
            f"data set {dataset} of {application.name} has too few training rows to set some aside", "ingest more"
        )
    if application.splits.grouped or isinstance(application.splits, ByTime):
        _log.warning(
            "trials of %s are compared on rows that are set aside by chance: rows of the same group, or of nearly the "
            "same time, are on both sides, so what learns them by heart looks best; give its splits a validation part",
            application.name,
        )
    if learns(application):
        _log.warning(
            "trials of %s are compared on rows that are set aside from those that its fit has seen with their labels: "
            "what trusts the learned state too much may look best; give its splits a validation part",
            application.name,
        )
    return _set_aside(training)


def _with_room(listed: Sequence[PartitionPrepared], room_bytes: int) -> dict[str, list[PartitionPrepared]]:
    """By split, the shards that fit, by partition.

    The validation split has the first share of the room, as large as what would be set aside without one; the training
    rows have the next, and the rest of the validation split what they leave.
    """
    training, validation = (
        sorted((each for each in listed if each.split == split), key=lambda each: each.partition)
        for split in (TRAIN, VALIDATION)
    )
    until = accumulate(each.size_bytes for each in validation)
    first = max(1, sum(end_bytes <= room_bytes * VALIDATION_SHARE for end_bytes in until))
    chosen = _fitting((*validation[:first], *training, *validation[first:]), room_bytes)
    return chosen if chosen[TRAIN] else _fitting(training, room_bytes)


def _fitting(shards: Sequence[PartitionPrepared], room_bytes: int) -> dict[str, list[PartitionPrepared]]:
    chosen: dict[str, list[PartitionPrepared]] = {TRAIN: [], VALIDATION: []}
    for shard in shards:
        if shard.size_bytes <= room_bytes:
            room_bytes -= shard.size_bytes
            chosen[shard.split].append(shard)
    return chosen


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
