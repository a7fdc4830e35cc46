import math

import pytest

from batch_layer import verdicts
from batch_layer.criterion import Criterion
from deeplambda.clock import now
from deeplambda.features import Tensor
from deeplambda.state.card import Card
from examples.digits.application import Digits

ACCURACY = Criterion(metric="accuracy")


def verdict(candidate: Card, champion: Card | None, code_version: str, criterion: Criterion) -> str | None:
    """By their cards alone, why the candidate may not serve; None when it may."""
    return "; ".join(verdicts.verdict(candidate, champion, code_version, criterion).reasons) or None


def card(version: int, accuracy: float, code_version: str = "c0de", **metrics: float) -> Card:
    return Card(
        application="digits",
        version=version,
        run="f00d",
        dataset="ab12",
        snapshot=1,
        code_version=code_version,
        hyperparameters={"epochs": 1},
        metrics={"accuracy": accuracy} | metrics,
        parameters=10,
        features={"features": Tensor(shape=(1, 28, 28))},
        output_size=10,
        weights_sha256="0" * 64,
        onnx_sha256="1" * 64,
        trained_rows=100,
        training_s=1.0,
        device="cpu, fp32",
        torch_version="2",
        created_at=now(),
    )


def test_the_first_version_may_serve() -> None:
    assert verdict(card(1, 0.5), None, "c0de", ACCURACY) is None


@pytest.mark.parametrize("accuracy", [0.99, 0.98, 0.98 - ACCURACY.margin + 1e-9])
def test_a_version_no_worse_than_the_tolerance_may_serve(accuracy: float) -> None:
    assert verdict(card(2, accuracy), card(1, 0.98), "c0de", ACCURACY) is None


def test_a_worse_version_may_not_and_both_figures_are_told() -> None:
    reason = verdict(card(2, 0.97), card(1, 0.98), "c0de", ACCURACY)
    assert reason is not None
    assert "0.9700" in reason
    assert "0.9800" in reason


def test_only_the_primary_metric_is_compared() -> None:
    assert verdict(card(2, 0.98, recall=0.1), card(1, 0.98, recall=0.9), "c0de", ACCURACY) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_a_reason(value: float) -> None:
    assert verdict(card(1, 0.98, recall=value), None, "c0de", ACCURACY) == f"its recall is {value}"


def test_code_that_is_not_deployed_is_a_reason() -> None:
    reason = verdict(card(1, 0.99, code_version="01d"), None, "c0de", ACCURACY)
    assert reason is not None
    assert "train again" in reason


def test_a_card_without_the_primary_metric_is_a_reason() -> None:
    assert verdict(card(1, 0.99), None, "c0de", Criterion(metric="recall")) == "its card has no recall"


def test_of_some_metrics_lower_is_better() -> None:
    rmse = Criterion(metric="rmse", lower_is_better=True, margin=0.1)
    assert verdict(card(2, 0, rmse=2.0), card(1, 0, rmse=3.0), "c0de", rmse) is None
    assert verdict(card(2, 0, rmse=3.05), card(1, 0, rmse=3.0), "c0de", rmse) is None
    reason = verdict(card(2, 0, rmse=3.2), card(1, 0, rmse=3.0), "c0de", rmse)
    assert reason is not None
    assert "rmse 3.2000 is worse than 3.0000" in reason


def test_the_application_says_by_what_and_how_much() -> None:
    class Strict(Digits):
        metrics = ("log_loss", "accuracy")
        margin = 0.25

    assert Criterion.of(Strict()) == Criterion(metric="log_loss", lower_is_better=True, margin=0.25)
    assert Criterion.of(Digits()) == ACCURACY


def test_figures_of_different_rows_are_said_to_be() -> None:
    reason = verdict(card(2, 0.90), card(1, 0.98), "c0de", ACCURACY)
    assert reason is not None
    assert "each on the test rows of its own data set" in reason


def test_a_champion_of_another_metric_is_no_hindrance() -> None:
    assert verdict(card(2, 0.5, recall=0.5), card(1, 0.99), "c0de", Criterion(metric="recall")) is None
