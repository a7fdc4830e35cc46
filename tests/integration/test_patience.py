"""Training with patience ends by the split `validation`, and the run's model is that of its best epoch."""

from pathlib import Path
from uuid import uuid4

import pytest
import torch

from batch_layer.checkpoint import fetch_checkpoint
from batch_layer.training_run import best_epoch
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.splits import VALIDATION
from tests.integration import blobs
from tests.integration.blobs import announce, new_data_set, put_shards, train_blobs

EPOCHS, PATIENCE = 40, 2


@pytest.fixture
def application(stack: Settings, tmp_path: Path) -> PackedApplication:
    """The blobs with a validation split, judged by a metric of which lower is better."""
    name = f"patient_{uuid4().hex[:8]}"
    source = blobs._SOURCE.format(name=name)
    source = source.replace("sources = (", f"sources = (Source(split={VALIDATION!r}, objects=('validation',)), ")
    source = source.replace(
        '{"accuracy": accuracy, "negative_log_loss": negative_log_loss}', '("log_loss", "accuracy")'
    )
    (tmp_path / name).mkdir()
    (tmp_path / name / "application.py").write_text(source)
    return pack_application(str(tmp_path / name), stack)


def test_it_ends_when_nothing_gets_better_and_keeps_the_best(
    stack: Settings, application: PackedApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "PARTITIONS", {**blobs.PARTITIONS, VALIDATION: 1})
    dataset = new_data_set()
    announce(stack, put_shards(stack, application.name, dataset))
    settings = {"epochs": EPOCHS, "patience": PATIENCE, "learning_rate": 0.05}
    trained = train_blobs(stack, application, dataset, **settings)
    store, best = ObjectStore(stack), len(trained.epochs)
    last, _ = fetch_checkpoint(store, application.name, trained.run, best + PATIENCE)
    assert (
        best
        == best_epoch([epoch.validation_metrics["log_loss"] for epoch in last.epochs], lower=True)
        < EPOCHS - PATIENCE
    )
    _, tensors = fetch_checkpoint(store, application.name, trained.run, best)
    assert all(torch.equal(tensor, tensors[f"model.{name}"]) for name, tensor in trained.model.state_dict().items())

    again = train_blobs(stack, application, dataset, **settings)
    assert again.epochs == trained.epochs, "a finished run trains nothing"


def test_without_a_validation_split_patience_is_refused(stack: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no split 'validation' to judge by"):
        train_blobs(stack, blobs.blobs(stack, tmp_path), new_data_set(), patience=1)
