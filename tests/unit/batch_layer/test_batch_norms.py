"""Two workers whose parts of a batch are a row or none normalise as one worker does that has all of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from batch_layer.compute import Compute
from batch_layer.rows import Rows, Window
from batch_layer.trainer import Trainer, all_hyperparameters
from examples.digits.application import Digits

RANDOMNESS = np.random.default_rng(3)
LABELS_N = RANDOMNESS.integers(0, 10, 42)
IMAGES = (RANDOMNESS.normal(0, 0.3, (42, 1, 28, 28)) + LABELS_N[:, None, None, None] / 3).astype(np.float32)
ROWS = Rows.of({"features": IMAGES}, LABELS_N)
HALF = 21


class Normalised(Digits):
    """Digits by a network with batch normalisation, which takes away the biases before it."""

    def build_model(self, **_: Any) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3, stride=3, bias=False), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(324, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)),
        )


def trained(window: Window, rank: int = 0, workers: int = 1) -> dict[str, Tensor]:
    """The state after two epochs in batches of three rows."""
    application, compute = Normalised(), Compute(torch.device("cpu"), torch.float32, rank, workers)
    trainer = Trainer(application, all_hyperparameters(application, {"batch_size": 3, "learning_rate": 0.003}), compute)
    for epoch in (1, 2):
        trainer.train_epoch(epoch, [window], lambda: len(window))
    return trainer.state()


def work(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/met", rank=rank, world_size=2)
    mine, others = slice(rank * HALF, (rank + 1) * HALF), (slice(None), None)
    window = Window.shared(ROWS.part(mine), [(HALF, others[rank]), (HALF, others[1 - rank])])
    torch.save(trained(window, rank, 2), folder / str(rank))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_with_a_row_or_none_of_a_batch_make_the_model_that_one_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    alone, together = trained(Window.whole(ROWS)), [torch.load(tmp_path / rank) for rank in "01"]
    for found in together:
        assert max(float((found[name] - alone[name]).abs().max()) for name in alone if name.startswith("model.")) < 1e-3
