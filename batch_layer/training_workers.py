"""Train on several workers: one run, data-parallel, started by Spark's `TorchDistributor`.

On one machine the workers are processes of it, a GPU each where there are some; on a cluster they are tasks of Spark's
executors, all of which have to be free at once. They talk by gloo, between GPUs by NCCL. The code comes from S3, and so
does the checkpoint that a run goes on from: a worker that dies costs the epoch that it died in, and the one before it
where that is still being judged.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from py4j.protocol import Py4JError
from pydantic_core import from_json, to_json
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from rich.console import Console
from torch import distributed

from batch_layer.checkpoint import epochs_trained, refusal_key, run_id
from batch_layer.console import EpochBars
from batch_layer.shard_format import MANIFEST, manifest_key
from batch_layer.trainer import all_hyperparameters
from batch_layer.training_run import Run, TrainedRun, TrainingListener, train
from deeplambda import errors
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore, sha256_of
from deeplambda.config import Settings
from deeplambda.errors import BadInput, ConfigurationError, DeepLambdaError, NotReady
from deeplambda.loading import PackedApplication, unpack_application
from deeplambda.splits import TRAIN
from deeplambda.state.card import Card, code_key

ATTEMPTS = 3
_POLL_S = 1.0
_JUDGED_WITHIN = timedelta(hours=6)
"""How long all workers wait for the one that judges an epoch by the test split; one that is dead is noticed at once."""
_BROKEN_OFF = (RuntimeError, PySparkException, Py4JError)
_log = logging.getLogger(__name__)
T = TypeVar("T")


def train_on_workers(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    *,
    workers: int,
    dataset: str,
    snapshot: int,
    overrides: Mapping[str, Any],
    listener: TrainingListener,
    parent: Card | None = None,
) -> TrainedRun:
    """As `train`, for a data set that is wholly prepared.

    Raises: what `train` does; NotReady when workers died again and again; ConfigurationError when they are more than
    this machine's GPUs.
    """
    gpus = 0 if settings.device == "cpu" else torch.cuda.device_count()
    if not settings.on_spark_cluster and 0 < gpus < workers:
        raise ConfigurationError(
            f"{workers} workers cannot share this machine's {gpus} GPU{'s' * (gpus > 1)}",
            f"train with --workers {gpus}, or without a GPU: DEEPLAMBDA_DEVICE=cpu in the environment",
        )
    from pyspark.ml.torch.distributor import TorchDistributor  # a second, which a run with one worker need not wait

    hyperparameters = all_hyperparameters(packed.load(), overrides)
    run = run_id(dataset, packed.code_version, hyperparameters, parent)
    store, code = ObjectStore(settings), packed.zip_file.read_bytes()
    store.put(code_key(packed.name, packed.code_version), code)
    distributor = TorchDistributor(
        num_processes=workers,
        local_mode=not settings.on_spark_cluster,
        use_gpu=spark.conf.get("spark.task.resource.gpu.amount", "0") != "0",
    )
    refusal = refusal_key(packed.name, run)
    given = (settings, packed, sha256_of(code), dataset, dict(overrides), parent, refusal)

    def attempt() -> DeepLambdaError | None:
        store.delete([refusal])
        try:
            distributor.run(_work, *given)
        except _BROKEN_OFF:
            if store.digest(refusal) is None:
                raise
            return _refused(store.get(refusal))
        return None

    with _followed(store, packed.name, dataset, run, hyperparameters["epochs"], listener), _sharing(settings, workers):
        refused = while_it_gets_on(
            attempt,
            lambda: len(epochs_trained(store, packed.name, run)),
            f"training {packed.name} on {workers} workers",
        )
    if refused is not None:
        raise refused
    whole: Any = {"dataset": dataset, "snapshot": snapshot, "overrides": overrides, "parent": parent}
    return train(settings, packed, listener=listener, **whole)


def while_it_gets_on(attempt: Callable[[], T], done: Callable[[], int], what: str) -> T:
    """What `attempt` returns. One that breaks off is made again, unless ATTEMPTS in a row have got no further.

    done: how far it has got. what: it is, for the error. Raises: NotReady.
    """
    fruitless, before = 0, done()
    while True:
        try:
            return attempt()
        except _BROKEN_OFF as exc:
            there, why = done(), str(exc).strip().rpartition("\n")[2]
            fruitless = fruitless + 1 if there == before else 1
            before = there
            if fruitless == ATTEMPTS:
                raise NotReady(
                    f"{what} broke off {ATTEMPTS} times in a row: {why}",
                    "see what the workers printed above; its checkpoints are kept, run it again",
                ) from exc
            _log.warning("%s broke off after epoch %d, and goes on: %s", what, there, why)


def _work(
    settings: Settings,
    packed: PackedApplication,
    code_sha256: str,
    dataset: str,
    overrides: Mapping[str, Any],
    parent: Card | None,
    refusal: str,
) -> None:
    """One worker's whole life. What is wrong with data, code or model would fail again, and is put on S3 under the key
    `refusal`. Whatever it is, the worker exits as one that failed: only then are the others ended, which wait."""
    store, key = ObjectStore(settings), code_key(packed.name, packed.code_version)
    if on_gpus := settings.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # NCCL takes the current one, by default all the first
    distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=_JUDGED_WITHIN)
    try:
        here = unpack_application(
            packed.name, packed.code_version, code_sha256, settings, lambda: store.get(key, sha256=code_sha256)
        )
        with Publisher(settings) as publisher:
            Run(settings, here, dataset, overrides, EpochBars(Console(quiet=True)), publisher, parent).to_the_end()
    except DeepLambdaError as exc:
        _log.error("worker %d: %s", distributed.get_rank(), exc)
        if not exc.retryable:
            store.put(refusal, to_json({"kind": type(exc).__name__, "message": exc.message, "remedy": exc.remedy}))
        raise SystemExit(1) from exc
    distributed.destroy_process_group()


def _refused(kept: bytes) -> DeepLambdaError:
    found = from_json(kept)
    kind: type[DeepLambdaError] = getattr(errors, found["kind"], BadInput)
    return kind(found["message"], found["remedy"])


@contextmanager
def _sharing(settings: Settings, workers: int) -> Iterator[None]:
    """On one machine, workers share its cores and talk over loopback."""
    if settings.on_spark_cluster:
        yield
        return
    own = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)),
        "GLOO_SOCKET_IFNAME": "lo",
        "PET_LOG_DIR": os.devnull,  # torchrun's: else each run leaves a folder of its own in the temporary files
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # else each says that no parameter of the model is unused
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _followed(
    store: ObjectStore, application: str, dataset: str, run: str, epochs: int, listener: TrainingListener
) -> Iterator[None]:
    """The listener is told of each epoch whose checkpoint the workers have stored."""
    shards = MANIFEST.validate_json(store.get(manifest_key(application, dataset)))
    rows, ended = sum(shard.rows for shard in shards if shard.split == TRAIN), Event()

    def follow() -> None:
        told = len(epochs_trained(store, application, run))
        listener.begin(told + 1, epochs, rows)
        while not ended.wait(_POLL_S):
            for trained in epochs_trained(store, application, run)[told:]:
                listener.done(trained)
                told = trained.epoch
                if told < epochs:
                    listener.begin(told + 1, epochs, rows)

    thread = Thread(target=follow, name="epochs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
