"""Metrics by name: what they say, which way is better, and what happens where rows do not determine them."""

from typing import Any

import numpy as np
import pytest

from deeplambda.application import Application, deciding_metric, metric_names
from deeplambda.errors import BadInput, ConfigurationError
from deeplambda.metrics import check_metrics, lower_is_better, measured, measured_by_piece, named_metrics
from deeplambda.objective import Classification, MultiLabel, Objective, Regression, accuracy
from examples.digits.application import Digits

TWO = Classification(classes=("fine", "broken"))
THREE = Classification(classes=("a", "b", "c"))
TOPICS = MultiLabel(labels=("x", "y"))


def judged_by(objective_: Objective, metrics_: Any) -> Application:
    class Judged(Digits):
        objective = objective_  # type: ignore[assignment]
        metrics = metrics_

    return Judged()


def measure(objective: Objective, name: str, labels: Any, outputs: Any) -> float:
    application = judged_by(objective, (name,))
    check_metrics(application)
    return measured(application, np.array(labels), np.array(outputs, np.float32))[name]


def test_metrics_of_two_classes() -> None:
    labels, probabilities = [0, 0, 1, 1], np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.2, 0.8]])
    outputs = np.log(probabilities)
    assert measure(TWO, "accuracy", labels, outputs) == 0.5
    assert measure(TWO, "balanced_accuracy", [0, 0, 0, 1], outputs) == pytest.approx((2 / 3 + 1) / 2)
    assert measure(TWO, "f1_macro", labels, outputs) == pytest.approx(0.5)
    expected = -np.log([0.9, 0.4, 0.4, 0.8]).mean()
    assert measure(TWO, "log_loss", labels, outputs) == pytest.approx(expected, rel=1e-5)
    assert measure(TWO, "brier", labels, outputs) == pytest.approx(np.mean([0.01, 0.36, 0.36, 0.04]), rel=1e-5)
    assert measure(TWO, "roc_auc", labels, outputs) == 0.75
    assert measure(TWO, "average_precision", labels, outputs) == pytest.approx((1 + 2 / 3) / 2)


def test_a_threshold_counts_in_what_is_decided() -> None:
    outputs = np.log([[0.9, 0.1], [0.7, 0.3]])
    assert measure(TWO, "accuracy", [0, 1], outputs) == 0.5
    assert measure(Classification(classes=TWO.classes, threshold=0.2), "accuracy", [0, 1], outputs) == 1.0


def test_metrics_of_more_classes_are_means_over_those_that_there_are() -> None:
    outputs = np.log([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    for name in named_metrics(THREE):
        assert np.isfinite(measure(THREE, name, [0, 1, 0], outputs)), name
    assert measure(THREE, "roc_auc", [0, 1, 0], outputs) == 1.0


def test_a_class_that_is_only_predicted_does_not_count_again_in_f1() -> None:
    labels, right = [0] * 500 + [1] * 500, np.eye(3)[[0] * 500 + [1] * 500]
    one_wrong = np.vstack([np.eye(3)[2], right[1:]])
    assert measure(THREE, "f1_macro", labels, right) == 1
    assert measure(THREE, "f1_macro", labels, one_wrong) == pytest.approx(0.9995, abs=1e-4), "one row of a thousand"


def test_f1_of_one_label_or_several_is_of_what_holds() -> None:
    rare = np.zeros((1000, 2))
    rare[:10] = 1
    for count in (1, 2):
        objective = MultiLabel(("spam", "art")[:count])
        assert measure(objective, "f1_macro", rare[:, :count], np.full((1000, count), -3)) == 0, "none is ever found"
        assert measure(objective, "f1_macro", rare[:, :count], rare[:, :count] * 6 - 3) == 1


def test_metrics_of_labels() -> None:
    labels, outputs = [[1, 0], [1, 1], [0, 1]], [[2, -2], [1, 1], [-1, -3]]
    assert measure(TOPICS, "accuracy", labels, outputs) == pytest.approx(2 / 3), "all labels of a row have to be right"
    for name in named_metrics(TOPICS):
        assert np.isfinite(measure(TOPICS, name, labels, outputs)), name


def test_metrics_of_numbers() -> None:
    objective = Regression(minimum=0)
    labels, outputs = [1.0, 2.0, 4.0], [[1.0], [3.0], [-2.0]]  # clipped to 0
    assert measure(objective, "rmse", labels, outputs) == pytest.approx(np.sqrt(17 / 3))
    assert measure(objective, "mae", labels, outputs) == pytest.approx(5 / 3)
    assert measure(objective, "r2", labels, outputs) == pytest.approx(1 - 17 / (14 / 3))


@pytest.mark.parametrize("labels", [[2.0], [2.0, 2.0, 2.0]])
def test_r2_of_labels_that_are_all_alike_is_refused(labels: list[float]) -> None:
    with pytest.raises(BadInput, match="r2 cannot be measured"):
        measure(Regression(), "r2", labels, [[1.0]] * len(labels))


@pytest.mark.parametrize(
    ("objective", "lower"),
    [
        (THREE, {"log_loss", "brier", "calibration_error"}),
        (TOPICS, {"log_loss", "brier"}),
        (Regression(), {"rmse", "mae"}),
    ],
    ids=lambda each: type(each).__name__,
)
def test_each_has_its_direction(objective: Objective, lower: set[str]) -> None:
    names = named_metrics(objective)
    application = judged_by(objective, tuple(names))
    assert {name for name in names if lower_is_better(application, name)} == lower


def test_of_a_function_higher_is_better() -> None:
    application = judged_by(THREE, {"accuracy": accuracy})
    check_metrics(application)
    assert not lower_is_better(application, "accuracy")
    assert measured(application, np.array([1]), np.array([[0, 1, 0]], np.float32)) == {"accuracy": 1.0}


def test_the_first_decides_and_one_name_needs_no_tuple() -> None:
    assert deciding_metric(judged_by(TWO, ("roc_auc", "accuracy"))) == "roc_auc"
    assert metric_names(judged_by(TWO, "roc_auc")) == ("roc_auc",)


@pytest.mark.parametrize(
    ("objective", "metrics", "why"),
    [
        (TWO, ("precision_at_7",), "'precision_at_7'.*name one of accuracy"),
        (Regression(), ("accuracy",), "'accuracy'.*name one of rmse, mae, r2"),
        (TWO, (), "names no metric"),
        (TWO, {"accuracy": "accuracy"}, "no function"),
        (Regression(), {"rmse": accuracy}, "of which lower is better"),
    ],
)
def test_metrics_that_cannot_be_meant_are_refused_when_the_application_is_loaded(
    objective: Objective, metrics: Any, why: str
) -> None:
    with pytest.raises(ConfigurationError, match=why):
        check_metrics(judged_by(objective, metrics))


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
def test_rows_of_one_class_do_not_determine_it(name: str) -> None:
    with pytest.raises(BadInput, match=r"cannot be measured.*alike in broken"):
        measure(TWO, name, [1, 1], [[0, 1], [1, 0]])


def test_outputs_of_another_shape_are_named() -> None:
    with pytest.raises(BadInput, match=r"3 classes need \(N, C\) logits"):
        measure(THREE, "accuracy", [0, 1], [[1, 0], [0, 1]])


def test_a_function_that_raises_is_named() -> None:
    with pytest.raises(BadInput, match="'broken' raised ZeroDivisionError"):
        measured(judged_by(TWO, {"broken": lambda labels, outputs: 1 / 0}), np.array([1]), np.zeros((1, 2), np.float32))


@pytest.mark.parametrize(
    ("objective", "labels_of", "outputs"),
    [
        (TWO, lambda chance: chance.integers(2, size=60), 2),
        (THREE, lambda chance: chance.integers(3, size=60), 3),
        (TOPICS, lambda chance: chance.integers(2, size=(60, 2)), 2),
        (Regression(), lambda chance: chance.normal(size=60), 1),
    ],
    ids=["two", "three", "labels", "numbers"],
)
def test_rows_that_come_in_pieces_are_measured_like_all_at_once(
    objective: Objective, labels_of: Any, outputs: int
) -> None:
    chance = np.random.default_rng(7)
    labels, answers = labels_of(chance), chance.normal(size=(60, outputs)).astype(np.float32)
    answers = answers[:, 0] if outputs == 1 else answers
    application = judged_by(objective, tuple(named_metrics(objective)))
    pieces = [(labels[rows], answers[rows]) for rows in (slice(7), slice(7, 48), slice(48, 60))]
    assert measured_by_piece(application, pieces) == pytest.approx(measured(application, labels, answers))
