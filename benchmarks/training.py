"""Seconds of a training epoch of the digits model, against the loop that PyTorch's tutorials teach.

The baseline: `DataLoader` over a `TensorDataset`, shuffled, the same batch size, fp32, NCHW, `AdamW`, PyTorch's own
settings. Each side is a process of its own, so that neither has the other's OpenMP settings; they take turns.

Profile (2 cores with AMX, quiet, batch 128, per step): of the baseline's 37 ms, `convolution_backward` takes 38 %,
convolution 19 %, max pooling 16 %, the linear layers 8 %, Adam 7 %, ReLU 4 %, the loader 3 %. What each change gave,
as a share of the baseline's time, one beside the other:

    rows by `index_select` from memory, fused AdamW                           0.96
    … and channels_last: oneDNN needs no reordering, max pooling vectorises    0.79
    … bf16 autocast instead, NCHW                                              0.45
    … both                                                                     0.30

Weights kept in bf16 with a master copy in fp32 gave no more than autocast (0.30): its casts are 5 % of a step, and the
copy costs as much. `torch.compile` was left out: it needs a C++ compiler where the model is trained. Of what is left,
`convolution_backward` takes 31 %, pooling 22 %, convolution 11 %, casts 10 %, AdamW 6 %.
On cores that other processes use, threads that spin at OpenMP's barriers (its default) made a step 3 to 5 times slower
than threads that sleep: `batch_layer.compute` asks for sleeping ones, which cost 4 % on an idle machine. So the ratio
is 0.3 to 0.45 on an idle machine and 0.1 to 0.2 on a busy one.
Not seen here, for it takes 800 steps: moments of weights that get no more gradient decay into denormals, and AdamW
takes 14 ms a step instead of 1. `Trainer` has them flushed to zero; the baseline, over whole epochs, pays for them.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.ratio import Ratio
from examples.digits.application import Digits

NAME = "training epoch"
AIM = 0.5
BASELINE = "plain fp32 loop"
ROWS = 12_800
ROUNDS = 5


def measure() -> Ratio:
    """The median over the rounds: what else runs on the machine slows both sides of a round."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as plain, ProcessPoolExecutor(1, spawn) as ours:
        seconds = [(plain.submit(_plain_epoch).result(), ours.submit(_epoch).result()) for _ in range(ROUNDS + 1)][
            1:
        ]  # in the first, memory and oneDNN's primitives are made
    per_10_000 = 10_000 / ROWS
    return Ratio(
        name=NAME,
        value=statistics.median(measured / baseline for baseline, measured in seconds),
        baseline_name=BASELINE,
        baseline=statistics.median(baseline for baseline, _ in seconds) * per_10_000,
        measured=statistics.median(measured for _, measured in seconds) * per_10_000,
        unit="s for 10,000 rows",
        aim=AIM,
        higher_is_better=False,
    )


def _rows() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    randomness = np.random.default_rng(0)
    labels_N = randomness.integers(0, 10, ROWS)
    noise = randomness.normal(0, 1, (ROWS, 1, 28, 28)).astype(np.float32)
    return noise + labels_N[:, None, None, None].astype(np.float32) / 5, labels_N


def _plain_epoch() -> float:
    return _timed(_plain())


def _epoch() -> float:
    return _timed(_ours())


def _timed(epoch: Callable[[], None]) -> float:
    begun = time.perf_counter()
    epoch()
    return time.perf_counter() - begun


@cache
def _plain() -> Callable[[], None]:
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    chosen = Digits.hyperparameters
    model = Digits().build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen["learning_rate"], weight_decay=chosen["weight_decay"])
    rows = TensorDataset(*map(torch.from_numpy, _rows()))
    loader = DataLoader(rows, batch_size=chosen["batch_size"], shuffle=True)

    def epoch() -> None:
        for features, labels_B in loader:
            optimizer.zero_grad()
            cross_entropy(model(features), labels_B).backward()
            optimizer.step()

    return epoch


@cache
def _ours() -> Callable[[], None]:
    from batch_layer.compute import best_compute
    from batch_layer.rows import Rows, Window
    from batch_layer.trainer import Trainer, all_hyperparameters
    from deeplambda.features import SINGLE

    application = Digits()
    trainer = Trainer(application, all_hyperparameters(application, {}), best_compute())
    images_NCHW, labels_N = _rows()
    rows = Rows.of({SINGLE: images_NCHW}, labels_N)

    def epoch() -> None:
        trainer.train_epoch(1, [Window.whole(rows)], lambda: ROWS)

    return epoch


if __name__ == "__main__":
    print(measure())
