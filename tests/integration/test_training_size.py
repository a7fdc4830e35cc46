"""Training on more rows than fit in memory, and by several workers, makes the model that it makes otherwise."""

import os
from pathlib import Path

import pytest
import torch
from pydantic_core import to_json
from pyspark.sql import SparkSession

from batch_layer.compute import best_compute
from batch_layer.shard_format import manifest_key
from batch_layer.training_data import TrainingData
from batch_layer.training_run import TrainedRun
from batch_layer.training_workers import train_on_workers
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import BadInput, NotReady, UnfitModel
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.state.card import code_key
from tests.integration import blobs
from tests.integration.blobs import PARTITIONS, ROWS, SeenBars, new_data_set, put_shards, train_blobs

TRAIN_ROWS = PARTITIONS["train"] * ROWS


def written(settings: Settings, folder: Path, **replaced: str) -> PackedApplication:
    """The blobs without dropout, which draws other numbers in each worker. replaced: lines of the source, by name."""
    packed = blobs.blobs(settings, folder)
    source = folder / packed.name / "application.py"
    text = source.read_text().replace("nn.Dropout(0.1), ", "")
    for before, after in replaced.items():
        text = text.replace(f"    def {before}(", f"{after}\n\n    def {before}(")
    source.write_text(text)
    return pack_application(str(source.parent), settings)


@pytest.fixture
def application(stack: Settings, tmp_path: Path) -> PackedApplication:
    return written(stack, tmp_path)


def whole_data_set(settings: Settings, application: str) -> str:
    dataset = new_data_set()
    facts = put_shards(settings, application, dataset)
    ObjectStore(settings).put(manifest_key(application, dataset), to_json(facts))
    return dataset


def by_workers(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    dataset: str,
    bars: SeenBars | None = None,
    **given,
) -> TrainedRun:
    return train_on_workers(
        *(spark, settings, packed),
        workers=2,
        dataset=dataset,
        snapshot=1,
        overrides=given,
        listener=bars or SeenBars(),
    )


def differences(one: TrainedRun, other: TrainedRun) -> list[float]:
    found = other.model.state_dict()
    return [float((tensor - found[name]).abs().max()) for name, tensor in one.model.state_dict().items()]


def small(settings: Settings) -> Settings:
    """So little memory that a window holds two of the three shards."""
    shard_bytes = 200 * (4 * 4 + 8)
    return settings.model_copy(update={"trainer_memory_mb": 3 * shard_bytes / 2**20})


def test_what_does_not_fit_is_read_in_windows_and_every_row_once(
    stack: Settings, application: PackedApplication
) -> None:
    dataset = whole_data_set(stack, application.name)
    data = TrainingData(small(stack), application.load(), dataset, best_compute(), seed=0)
    for epoch in (1, 2):
        windows = list(data.epoch(epoch))
        assert len(windows) > 1
        assert sum(len(window.rows) for window in windows) == TRAIN_ROWS
    assert not torch.equal(next(data.epoch(1)).rows.labels_N, next(data.epoch(2)).rows.labels_N), "in another order"
    assert torch.equal(next(data.epoch(1)).rows.labels_N, next(data.epoch(1)).rows.labels_N)


def test_a_streamed_run_learns_and_is_taken_up_where_it_was(stack: Settings, application: PackedApplication) -> None:
    dataset = whole_data_set(stack, application.name)
    streamed = train_blobs(small(stack), application, dataset, epochs=4)
    assert streamed.epochs[-1].metrics["accuracy"] > 0.9
    assert {epoch.rows for epoch in streamed.epochs} == {TRAIN_ROWS}

    store, runs = ObjectStore(stack), f"{application.name}/runs/{streamed.run}/checkpoint-"
    store.delete(found.key for found in store.list(runs) if found.key.removeprefix(runs) > "00003")
    taken_up = train_blobs(small(stack), application, dataset, epochs=4)
    assert taken_up.epochs[:2] == streamed.epochs[:2]
    assert max(differences(streamed, taken_up)) == 0


def test_two_workers_make_the_model_that_one_makes(
    spark: SparkSession, stack: Settings, application: PackedApplication
) -> None:
    dataset = whole_data_set(stack, application.name)
    bars = SeenBars()
    together = by_workers(spark, stack, application, dataset, bars)
    assert [epoch.device.startswith("2 × ") for epoch in together.epochs] == [True] * 3
    store = ObjectStore(stack)
    store.delete(found.key for found in store.list(f"{application.name}/runs/"))
    alone = train_blobs(stack, application, dataset)
    assert max(differences(alone, together)) < (1e-5 if "fp32" in alone.epochs[0].device else 1e-2)
    assert max(differences(alone, train_blobs(stack, application, dataset, seed=1))) > 0.1, "as other runs are not"
    assert alone.epochs[-1].metrics["accuracy"] == pytest.approx(together.epochs[-1].metrics["accuracy"], abs=0.01)


@pytest.mark.long
def test_a_worker_that_is_killed_costs_its_epoch(spark: SparkSession, stack: Settings, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    dies = f"""
    def loss(self, outputs, labels_N, features):
        import os, pathlib, signal, time
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        if os.environ.get("RANK") == "1" and self.calls == 30:  # of 12 in each epoch
            if not pathlib.Path({str(killed)!r}).exists():
                pathlib.Path({str(killed)!r}).touch()
                time.sleep(2)
                os.kill(os.getpid(), signal.SIGKILL)
        return self.objective.loss(outputs, labels_N)"""
    packed = written(stack, tmp_path, build_model=dies)
    trained = by_workers(spark, stack, packed, whole_data_set(stack, packed.name), epochs=4)
    assert killed.exists()
    assert [epoch.epoch for epoch in trained.epochs] == [1, 2, 3, 4]
    told = blobs.lifecycle(stack, lambda fact: fact.get("run") == trained.run and "epoch" in fact)
    assert [fact["epoch"] for fact in told][:4] == [1, 2, 2, 3], "the third epoch was trained again, and no other"


def test_what_a_worker_refuses_is_said_as_if_it_were_alone(
    spark: SparkSession, stack: Settings, application: PackedApplication
) -> None:
    with pytest.raises(UnfitModel, match=r"loss became .* in epoch 1"):
        by_workers(spark, stack, application, whole_data_set(stack, application.name), learning_rate=1e30)


def test_what_only_one_worker_finds_wrong_is_said_as_well(
    spark: SparkSession, stack: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one judges an epoch, while the others train the next and end for want of it."""
    fails = '    metrics = {"accuracy": lambda labels, outputs: 1 / int(__import__("os").environ["RANK"])}'
    packed = written(stack, tmp_path, build_model=fails)
    with pytest.raises(BadInput, match=r"accuracy.*division by zero"):
        by_workers(spark, stack, packed, whole_data_set(stack, packed.name), epochs=4)
    assert "broke off" not in caplog.text, "it is not trained again and again"
    kept = ObjectStore(stack).get(code_key(packed.name, packed.code_version))
    assert kept == packed.zip_file.read_bytes()


def test_a_worker_that_refuses_ends_those_that_do_not_hear_of_it(
    spark: SparkSession, stack: Settings, tmp_path: Path
) -> None:
    """As a GPU's worker does not, which waits for a sum."""
    outlived = tmp_path / "outlived"
    refuses = f"""
    def loss(self, outputs, labels_N, features):
        import os, pathlib, time
        if os.environ["RANK"] == "0":
            raise ValueError("these labels mean nothing")
        time.sleep(40)
        pathlib.Path({str(outlived)!r}).touch()
        return self.objective.loss(outputs, labels_N)"""
    packed = written(stack, tmp_path, build_model=refuses)
    with pytest.raises(BadInput, match="these labels mean nothing"):
        by_workers(spark, stack, packed, whole_data_set(stack, packed.name))
    assert not outlived.exists()


@pytest.mark.long
def test_workers_that_die_again_and_again_are_given_up(spark: SparkSession, stack: Settings, tmp_path: Path) -> None:
    dies = "    def loss(self, outputs, labels_N, features):\n        import os\n        os._exit(3)"
    packed = written(stack, tmp_path, build_model=dies)
    with pytest.raises(NotReady, match="on 2 workers broke off 3 times"):
        by_workers(spark, stack, packed, whole_data_set(stack, packed.name))
    assert "OMP_NUM_THREADS" not in os.environ
