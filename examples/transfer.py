"""What it gives to begin from another version's weights: `python -m examples.transfer`, without a stack.

A digits model is trained on MNIST. Then 100 of scikit-learn's 8×8 digits, scaled to 28×28, are learned from scratch and
from its weights, with the same settings, once for each seed; the other 1,697 judge. Once the classes are the same ten
digits, once they are even and odd, for which the last layer is made anew. The figures of docs/loop.md are from it.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer
from scipy.stats import ttest_rel
from torch import nn

from batch_layer.compute import best_compute
from batch_layer.rows import Rows, Window
from batch_layer.trainer import Trainer, all_hyperparameters
from deeplambda.features import SINGLE
from deeplambda.objective import Classification
from deeplambda.state.weights import encoded_weights
from examples.digits.application import Digits
from examples.measure import interval
from examples.mnist import mnist_folder, write_small_digits

LEARNED = 100
_CHOSEN = {"epochs": 30, "batch_size": 20}


class Parity(Digits):
    """Is the digit even or odd?"""

    objective = Classification(("even", "odd"))

    def build_model(self, **hyperparameters: Any) -> Any:
        *body, head = super().build_model(**hyperparameters)
        return nn.Sequential(*body, nn.Linear(head.in_features, 2))


def rows_of(folder: Path) -> Rows:
    """All rows of a folder with MNIST's four files, as the digits application sees them."""
    application = Digits()
    found = [
        row
        for source in application.sources
        for row in application.examples(source, {name: (folder / name).read_bytes() for name in source.objects})
    ]
    payload = pa.RecordBatch.from_pydict({"image": [row["image"] for row in found]})
    return Rows.of({SINGLE: application.transform(payload)}, np.array([row["label"] for row in found]))


def trained(application: Digits, rows: Rows, overrides: dict[str, Any], parent: bytes | None = None) -> Trainer:
    """A model after the last epoch. parent: the weights of a model of ten digits that it begins from."""
    hyperparameters = all_hyperparameters(application, overrides)
    trainer = Trainer(application, hyperparameters, best_compute())
    if parent is not None:
        trainer.begin_with(parent, "the model of MNIST", 10)
    for epoch in range(1, hyperparameters["epochs"] + 1):
        trainer.train_epoch(epoch, [Window.whole(rows)], lambda: len(rows))
    return trainer


def main(
    seeds: Annotated[int, typer.Option(help="of each way", min=2)] = 10,
    epochs: Annotated[int, typer.Option(help="over MNIST", min=1)] = 2,
) -> None:
    """Print the accuracy of each way, and the interval over seeds."""
    with tempfile.TemporaryDirectory() as scratch:
        write_small_digits(Path(scratch))
        small = rows_of(Path(scratch))
        large = rows_of(mnist_folder(Path(scratch))[0])
    parent = encoded_weights(trained(Digits(), large, {"epochs": epochs}).model)
    for application, labels_N in ((Digits(), small.labels_N), (Parity(), small.labels_N % 2)):
        rows = Rows(small.features, labels_N)
        found: dict[str, list[float]] = {"from scratch": [], "from MNIST": []}
        for seed in range(seeds):
            order_N = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            learned, judging = rows.chosen(order_N[:LEARNED]), rows.chosen(order_N[LEARNED:])
            for figures, weights in zip(found.values(), (None, parent), strict=True):
                model = trained(application, learned, _CHOSEN | {"seed": seed}, weights)
                figures.append(model.evaluate([judging])["accuracy"])
        scratch_way, mnist_way = found.values()
        p = ttest_rel(mnist_way, scratch_way).pvalue
        classes = ", ".join(application.objective.classes)
        print(
            f"{classes}: "
            + "; ".join(f"{way} {interval(figures)}" for way, figures in found.items())
            + f"; better in {sum(a > b for a, b in zip(mnist_way, scratch_way, strict=True))} of {seeds} seeds, "
            f"paired t-test p = {p:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
