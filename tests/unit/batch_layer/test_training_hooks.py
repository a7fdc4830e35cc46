"""What an application may override of training: its loss, its optimiser, its augmentation, clipping and patience."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from batch_layer.compute import Compute
from batch_layer.rows import Rows, Window
from batch_layer.trainer import Trainer, all_hyperparameters
from batch_layer.training_run import best_epoch
from deeplambda.application import Application
from deeplambda.errors import BadInput
from deeplambda.features import SINGLE
from deeplambda.objective import Classification, MultiLabel, Regression, statistics_of
from deeplambda.state.card import TrainerHyperparameters
from examples.digits.application import Digits

CPU = Compute(torch.device("cpu"), torch.float32)
RANDOMNESS = np.random.default_rng(5)
POINTS = RANDOMNESS.normal(size=(120, 4)).astype(np.float32)
CLASSES = (POINTS[:, 0] > 0.8).astype(np.int64)


class Points(Digits):
    """Four numbers in, one of two classes out."""

    name = "points"
    objective = Classification(classes="ab")
    metrics = ("accuracy", "log_loss")
    hyperparameters = {"epochs": 3, "batch_size": 20, "learning_rate": 0.05, "weight_decay": 0.0}  # noqa: RUF012

    def build_model(self, **hyperparameters: Any) -> nn.Module:
        return nn.Linear(4, self.objective.output_size)


def rows(labels: Any = CLASSES) -> Rows:
    return Rows.of({SINGLE: POINTS}, np.asarray(labels))


def trained(application: Application, labels: Any = CLASSES, **overrides: Any) -> Trainer:
    made = Trainer(application, all_hyperparameters(application, overrides), CPU)
    made.know_labels(statistics_of(application.objective, np.asarray(labels)))
    for epoch in range(1, 4):
        made.train_epoch(epoch, [Window.whole(rows(labels))], lambda: len(POINTS))
    return made


def weights(made: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in made.state().items() if name.startswith("model.")}


def same(one: Trainer, other: Trainer) -> bool:
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_hooks_that_do_what_is_done_without_them_change_no_bit() -> None:
    class Explicit(Points):
        def loss(self, outputs: Any, labels_N: Any, features: Any) -> Any:
            return nn.functional.cross_entropy(outputs, labels_N)

        def optimizer(self, parameters: Any, hyperparameters: Any) -> Any:
            rate, decay = hyperparameters["learning_rate"], hyperparameters["weight_decay"]
            return torch.optim.AdamW(list(parameters), lr=rate, weight_decay=decay, fused=True)

        def augment(self, features: Any) -> Any:
            return features

    assert same(trained(Explicit()), trained(Points()))
    assert same(trained(Points(), gradient_clip=0, patience=0), trained(Points()))


def test_a_loss_sees_outputs_labels_and_features() -> None:
    seen = []

    class Own(Points):
        def loss(self, outputs: Any, labels_N: Any, features: Any) -> Any:
            seen.append((outputs.shape, labels_N.shape, features.shape))
            return self.objective.loss(outputs, labels_N) + features.mean() * 0

    made = trained(Own())
    assert seen[0] == ((20, 2), (20,), (20, 4))
    assert made.mean_loss() == pytest.approx(trained(Points()).mean_loss(), abs=1e-6)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adafactor]
)
def test_a_run_with_another_optimiser_is_taken_up_where_it_stopped(optimizer: Callable[..., Any]) -> None:
    class Own(Points):
        def optimizer(self, parameters: Any, hyperparameters: Any) -> Any:
            return optimizer(list(parameters), lr=hyperparameters["learning_rate"])

    through = trained(Own())
    stopped = Trainer(Own(), all_hyperparameters(Own(), {}), CPU)
    stopped.train_epoch(1, [Window.whole(rows())], lambda: len(POINTS))
    taken_up = Trainer(Own(), all_hyperparameters(Own(), {}), CPU)
    taken_up.load_state(stopped.state())
    for epoch in (2, 3):
        taken_up.train_epoch(epoch, [Window.whole(rows())], lambda: len(POINTS))
    assert same(taken_up, through)


def test_each_parameter_group_keeps_its_own_learning_rate() -> None:
    class Frozen(Points):
        def optimizer(self, parameters: Any, hyperparameters: Any) -> Any:
            weight, bias = parameters
            return torch.optim.SGD([{"params": [bias], "lr": 0.1}, {"params": [weight], "lr": 0.0}], lr=1.0)

    untouched = Trainer(Frozen(), all_hyperparameters(Frozen(), {}), CPU)
    made = trained(Frozen())
    assert torch.equal(weights(made)["model.weight"], weights(untouched)["model.weight"])
    assert not torch.equal(weights(made)["model.bias"], weights(untouched)["model.bias"])


def test_only_training_batches_are_augmented() -> None:
    seen = []

    class Noisy(Points):
        def augment(self, features: Any) -> Any:
            seen.append(len(features))
            return features + torch.randn_like(features)

    made = trained(Noisy())
    assert sum(seen) == 3 * len(POINTS)
    made.evaluate([rows()])
    assert sum(seen) == 3 * len(POINTS)
    assert same(made, trained(Noisy())), "equal seeds draw equal noise"
    assert not same(made, trained(Points()))


@pytest.mark.parametrize(
    ("method", "body", "why"),
    [
        ("loss", lambda self, outputs, labels_N, features: 1 / 0, "loss of points raised ZeroDivisionError"),
        ("loss", lambda self, outputs, labels_N, features: outputs, "loss of points: .* not a scalar"),
        ("augment", lambda self, features: features[:1], "augment of points: it gives 1 rows"),
        ("augment", lambda self, features: {"other": features}, "augment of points: it gives .* of other"),
        ("optimizer", lambda self, parameters, hyperparameters: "adam", "optimizer of points gives str"),
        ("optimizer", lambda self, parameters, hyperparameters: hyperparameters["beta"], "raised KeyError"),
    ],
)
def test_what_is_wrong_with_a_hook_is_named(method: str, body: Any, why: str) -> None:
    own = type("Own", (Points,), {method: body})
    with pytest.raises(BadInput, match=why):
        trained(own())


def test_balanced_weights_are_those_of_the_train_split() -> None:
    class Balanced(Points):
        objective = Classification(classes="ab", weights="balanced")

    counts_C = np.bincount(CLASSES)

    class Given(Points):
        objective = Classification(classes="ab", weights=tuple(len(CLASSES) / (2 * counts_C)))

    assert same(trained(Balanced()), trained(Given()))
    assert not same(trained(Balanced()), trained(Points()))
    assert Balanced.objective._counts_C is None, "the class's objective is not changed"


@pytest.mark.parametrize(
    ("objective_", "metrics_", "labels"),
    [
        (MultiLabel(labels="xy"), ("average_precision", "accuracy"), (POINTS[:, :2] > 0).astype(np.float32)),
        (Regression(), ("rmse", "r2"), POINTS[:, 0].astype(np.float64)),
    ],
    ids=["labels", "numbers"],
)
def test_other_objectives_are_trained_and_judged(objective_: Any, metrics_: tuple[str, ...], labels: Any) -> None:
    class Other(Points):
        objective = objective_
        metrics = metrics_

    made = Trainer(Other(), all_hyperparameters(Other(), {"epochs": 20}), CPU)
    before = made.evaluate([rows(labels)])
    for epoch in range(1, 21):
        made.train_epoch(epoch, [Window.whole(rows(labels))], lambda: len(POINTS))
    after = made.evaluate([rows(labels)])
    assert after.keys() == set(metrics_)
    assert after[metrics_[1]] > before[metrics_[1]]


def test_a_gradient_is_clipped_to_its_largest_norm() -> None:
    class Steep(Points):
        def loss(self, outputs: Any, labels_N: Any, features: Any) -> Any:
            return 1e4 * self.objective.loss(outputs, labels_N)

        def optimizer(self, parameters: Any, hyperparameters: Any) -> Any:
            return torch.optim.SGD(list(parameters), lr=hyperparameters["learning_rate"])

    def moved(**overrides: Any) -> float:
        start = Trainer(Steep(), all_hyperparameters(Steep(), overrides), CPU)
        end = trained(Steep(), **overrides)
        return max(float((weights(end)[name] - tensor).norm()) for name, tensor in weights(start).items())

    steps = 3 * len(POINTS) / 20
    assert moved(gradient_clip=0.1) <= 0.1 * 0.05 * steps
    assert moved() > 1


def test_hyperparameters_that_are_off_leave_a_run_what_it_was() -> None:
    """A run's id follows from them, and cards of before have neither."""
    plain = all_hyperparameters(Points(), {})
    assert plain == dict(Points.hyperparameters) | {"seed": 0}
    assert all_hyperparameters(Points(), {"patience": 0, "gradient_clip": 0.0}) | plain == plain | {
        "patience": 0,
        "gradient_clip": 0.0,
    }
    assert TrainerHyperparameters.model_validate(plain).patience == 0


@pytest.mark.parametrize(("name", "value"), [("gradient_clip", -1), ("patience", -1), ("patience", 1.5)])
def test_a_wrong_one_is_named(name: str, value: float) -> None:
    with pytest.raises(BadInput, match=f"'{name}'"):
        all_hyperparameters(Points(), {name: value})


def test_the_best_epoch_follows_the_direction() -> None:
    assert best_epoch([0.5, 0.9, 0.9, 0.7], lower=False) == 2
    assert best_epoch([0.5, 0.4, 0.6], lower=True) == 2
    assert best_epoch([], lower=True) == 0
