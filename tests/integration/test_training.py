"""Training begins with the first shard, goes on where it was killed, and never trains on a broken shard."""

import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import onnxruntime
import pytest
import torch
from pydantic_core import to_json

from batch_layer.feed import ShardFeed
from batch_layer.publish import metric_rows, model_row, publish_run
from batch_layer.shard_format import manifest_key
from batch_layer.training_run import TrainedRun
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import consumer
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput, CorruptObject, NotReady, UnfitModel
from deeplambda.features import Tensor
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.records import topics
from deeplambda.state import registry
from deeplambda.state.card import ONNX, Card, artefact_key, fetch_card
from deeplambda.state.versions import fetch_model
from tests.integration.blobs import (
    PARTITIONS,
    ROWS,
    SeenBars,
    announce,
    blobs,
    lifecycle,
    new_data_set,
    prepared_data_set,
    put_shards,
    train_blobs,
)
from tests.traffic import eventually

TRAIN_ROWS = PARTITIONS["train"] * ROWS


@pytest.fixture(scope="module")
def trained(stack: Settings, application: PackedApplication) -> TrainedRun:
    """A finished run, for the tests that ask what became of one."""
    return train_blobs(stack, application, prepared_data_set(stack, application.name))


def epochs_told(settings: Settings, run: str) -> list[int]:
    return [fact["epoch"] for fact in lifecycle(settings, lambda fact: fact.get("run") == run and "epoch" in fact)]


def test_each_epoch_is_told_with_metrics_of_the_test_split(stack: Settings, trained: TrainedRun) -> None:
    told = lifecycle(stack, lambda fact: fact["type"] == "EpochTrained" and fact["run"] == trained.run)
    assert [fact["epoch"] for fact in told] == [1, 2, 3]
    assert {fact["rows"] for fact in told} == {TRAIN_ROWS}
    assert told[-1]["metrics"] == trained.epochs[-1].metrics
    assert told[-1]["metrics"]["accuracy"] > 0.9
    assert told[-1]["loss"] < told[0]["loss"]


def test_run_time_metrics_of_training_are_told(stack: Settings, application: PackedApplication) -> None:
    train_blobs(stack, application, prepared_data_set(stack, application.name), epochs=1)
    reader = consumer(stack, topics.METRICS)
    names: set[str] = set()

    def all_told() -> bool:
        for records in reader.poll(timeout_ms=500).values():
            names.update(
                name
                for name in ("epoch_duration", "training_rate", "loss", "test_accuracy")
                for record in records
                if f'"{application.name}"'.encode() in record.value and f'"name":"{name}"'.encode() in record.value
            )
        return len(names) == 4

    try:
        assert eventually(all_told), names
    finally:
        reader.close()


def test_training_begins_before_every_shard_is_prepared(stack: Settings, application: PackedApplication) -> None:
    dataset = new_data_set()
    first, *others = put_shards(stack, application.name, dataset)
    bars = SeenBars()
    with ThreadPoolExecutor(1) as executor:
        training = executor.submit(train_blobs, stack, application, dataset, bars)
        announce(stack, [first])
        assert bars.trained.wait(60)
        assert not training.done()
        announce(stack, [first, *others])
        assert training.result(60).epochs[-1].rows == TRAIN_ROWS


def test_a_manifest_is_enough(stack: Settings, application: PackedApplication) -> None:
    dataset = new_data_set()
    facts = put_shards(stack, application.name, dataset)
    ObjectStore(stack).put(manifest_key(application.name, dataset), to_json(facts))
    assert train_blobs(stack, application, dataset, epochs=1).epochs[-1].rows == TRAIN_ROWS


def test_shards_that_never_come_are_named(stack: Settings, application: PackedApplication) -> None:
    dataset = new_data_set()
    announce(stack, put_shards(stack, application.name, dataset)[:2])
    feed = ShardFeed(stack, application.load(), dataset, patience_s=1)
    with pytest.raises(NotReady, match=r"train-00002, all of test; run 'deeplambda batch prepare'"):
        list(feed)


def test_training_ends_with_the_preparation_that_it_follows(stack: Settings, application: PackedApplication) -> None:
    preparing: Future[None] = Future()
    preparing.set_exception(RuntimeError("Spark is gone"))
    feed = ShardFeed(stack, application.load(), new_data_set(), preparing=preparing)
    with pytest.raises(NotReady, match="Spark is gone"):
        list(feed)


@pytest.mark.parametrize("broken", [lambda raw: raw[:-9], lambda raw: raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]])
def test_a_truncated_or_flipped_shard_is_named_and_not_trained_on(
    stack: Settings, application: PackedApplication, broken: object
) -> None:
    dataset = new_data_set()
    facts = put_shards(stack, application.name, dataset)
    store = ObjectStore(stack)
    whole = store.client.get_object(Bucket=store.bucket, Key=facts[0].key)
    store.client.put_object(
        Bucket=store.bucket,
        Key=facts[0].key,
        Body=broken(whole["Body"].read()),  # type: ignore[operator]
        Metadata=whole["Metadata"],
    )
    announce(stack, facts)
    bars = SeenBars()
    with pytest.raises(CorruptObject, match=facts[0].key):
        train_blobs(stack, application, dataset, bars)
    assert not bars.trained.is_set()


def test_training_that_follows_an_ended_preparation_takes_the_rest_from_the_manifest(
    stack: Settings, application: PackedApplication
) -> None:
    dataset = new_data_set()
    facts = put_shards(stack, application.name, dataset)
    announce(stack, facts[:1])
    preparing: Future[None] = Future()
    feed = iter(ShardFeed(stack, application.load(), dataset, preparing=preparing))
    assert next(feed).announcement == facts[0]
    ObjectStore(stack).put(manifest_key(application.name, dataset), to_json(facts))
    preparing.set_result(None)
    assert [shard.announcement for shard in feed] == facts[1:]


def test_a_split_that_has_no_shard_is_refused(stack: Settings, application: PackedApplication) -> None:
    dataset = new_data_set()
    only_train = [fact for fact in put_shards(stack, application.name, dataset) if fact.split == "train"]
    ObjectStore(stack).put(manifest_key(application.name, dataset), to_json(only_train))
    with pytest.raises(BadInput, match="no rows in the split 'test'"):
        train_blobs(stack, application, dataset)


def test_a_manifest_that_lacks_a_shard_is_refused(stack: Settings, application: PackedApplication) -> None:
    dataset = new_data_set()
    facts = put_shards(stack, application.name, dataset)
    ObjectStore(stack).put(manifest_key(application.name, dataset), to_json(facts[1:]))
    with pytest.raises(CorruptObject, match="lacks train-00000"):
        train_blobs(stack, application, dataset)


def test_a_data_set_without_rows_is_refused(stack: Settings, application: PackedApplication) -> None:
    dataset = new_data_set()
    announce(stack, put_shards(stack, application.name, dataset, rows=0))
    with pytest.raises(BadInput, match="no rows in the split 'train'"):
        train_blobs(stack, application, dataset)


def test_a_loss_that_is_not_finite_stops_the_run(stack: Settings, application: PackedApplication) -> None:
    dataset = prepared_data_set(stack, application.name)
    with pytest.raises(UnfitModel, match=r"loss became .* in epoch 1.*learning_rate"):
        train_blobs(stack, application, dataset, learning_rate=1e30)


def test_a_killed_run_goes_on_where_it_was_and_ends_as_if_it_had_not_been(
    stack: Settings, application: PackedApplication
) -> None:
    dataset = prepared_data_set(stack, application.name)
    victim = textwrap.dedent(f"""
        import os, signal, threading
        from pathlib import Path
        from deeplambda.config import load_settings
        from deeplambda.loading import PackedApplication, pack_application
        from tests.integration.blobs import SeenBars, train_blobs

        class KilledInTheThirdEpoch(SeenBars):
            second_is_safe = threading.Event()

            def done(self, trained):
                if trained.epoch == 2:
                    self.second_is_safe.set()

            def advance(self, rows, loss):
                if self._bar == 2 and self.second_is_safe.wait(60):
                    os.kill(os.getpid(), signal.SIGKILL)

        packed = PackedApplication(
            name={application.name!r},
            code_version={application.code_version!r},
            zip_file=Path({str(application.zip_file)!r}),
        )
        train_blobs(load_settings(), packed, {dataset!r}, KilledInTheThirdEpoch(), epochs=5)
    """)
    killed = subprocess.run([sys.executable, "-c", victim], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL

    resumed = train_blobs(stack, application, dataset, epochs=5)
    assert [fact.epoch for fact in resumed.epochs] == [1, 2, 3, 4, 5]
    assert epochs_told(stack, resumed.run) == [1, 2, 2, 3, 4, 5], "the last checkpoint's event is told again"

    unbroken = train_blobs(stack, application, prepared_data_set(stack, application.name), epochs=5)
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_model_that_keeps_what_it_computed_is_trained_judged_and_published(stack: Settings, tmp_path: Path) -> None:
    """Such a tensor cannot be copied with the model."""
    home = tmp_path / blobs(stack, tmp_path).name
    source = (home / "application.py").read_text()
    own = """
        class Keeps(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.utils.weight_norm(nn.Linear(4, hidden)), nn.Linear(hidden, 3)

            def forward(self, features):
                self.kept = self.first(features).relu()
                return self.last(self.kept)

        return Keeps()
"""
    (home / "application.py").write_text(source[: source.index("        return nn.Sequential(")] + own)
    packed = pack_application(str(home), stack)
    trained = train_blobs(stack, packed, prepared_data_set(stack, packed.name))
    assert trained.epochs[-1].metrics["accuracy"] > 0.8
    assert publish_run(stack, packed, trained) == 1


def test_a_finished_run_trains_nothing(stack: Settings, application: PackedApplication, trained: TrainedRun) -> None:
    bars = SeenBars()
    again = train_blobs(stack, application, trained.dataset, bars)
    assert not bars.trained.is_set()
    assert again.epochs == trained.epochs
    assert all(torch.equal(a, b) for a, b in zip(trained.model.parameters(), again.model.parameters(), strict=True))


def test_a_corrupt_checkpoint_costs_one_epoch(stack: Settings, application: PackedApplication) -> None:
    dataset = prepared_data_set(stack, application.name)
    first = train_blobs(stack, application, dataset)
    store = ObjectStore(stack)
    keys = [found.key for found in store.list(f"{application.name}/runs/{first.run}/checkpoint-00003-")]
    store.client.put_object(Bucket=store.bucket, Key=keys[0], Body=b"\x80\x04cos\nsystem\n")
    bars = SeenBars()
    again = train_blobs(stack, application, dataset, bars)
    assert bars.trained.is_set()
    assert again.epochs[:2] == first.epochs[:2]
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))


def test_a_run_is_published_once(stack: Settings, application: PackedApplication, trained: TrainedRun) -> None:
    version = publish_run(stack, application, trained)
    assert publish_run(stack, application, trained) == version
    published = lifecycle(stack, lambda fact: fact["type"] == "ModelPublished" and fact["run"] == trained.run)
    assert [fact["version"] for fact in published] == [version]

    card = fetch_card(ObjectStore(stack), application.name, version)
    assert card.metrics == trained.epochs[-1].metrics
    assert (card.trained_rows, card.parameters) == (TRAIN_ROWS, 4 * 16 + 16 + 16 * 3 + 3)
    assert card.features == {"features": Tensor(shape=(4,))}
    assert model_row(card)["version"] == version
    assert {row["epoch"] for row in metric_rows(card, trained.epochs)} == {1, 2, 3, None}


def test_the_onnx_export_gives_the_models_outputs(
    stack: Settings, application: PackedApplication, trained: TrainedRun
) -> None:
    store, version = ObjectStore(stack), publish_run(stack, application, trained)
    card = fetch_card(store, application.name, version)
    model = fetch_model(store, application.load(), card)
    onnx = store.get(artefact_key(application.name, version, ONNX), sha256=card.onnx_sha256)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    features = torch.randn(17, 4)
    (outputs,) = session.run(["outputs"], {"features": features.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), model(features))


def test_twenty_publishers_of_one_run_make_one_version(
    stack: Settings, application: PackedApplication, trained: TrainedRun
) -> None:
    template = fetch_card(ObjectStore(stack), application.name, publish_run(stack, application, trained))
    run, stored = new_data_set(), []

    def store_artefacts(version: int) -> Card:
        stored.append(version)
        return template.model_copy(update={"version": version, "run": run, "created_at": now()})

    together = threading.Barrier(20)

    def publish() -> int:
        own = mysql.engine.__wrapped__(stack, "platform")  # connections of its own, as another process has
        together.wait()
        try:
            return registry.publish(own, application.name, run, store_artefacts)
        finally:
            own.dispose()

    with ThreadPoolExecutor(20) as executor:
        versions = [publishing.result() for publishing in [executor.submit(publish) for _ in range(20)]]
    assert versions == [template.version + 1] * 20
    assert stored == [template.version + 1]
