"""Outputs become predictions, labels become arrays, and a wrong label says what is wrong with it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deeplambda.objective import (
    PREDICTION_LIMIT,
    SCORES_LIMIT,
    Classification,
    MultiLabel,
    Objective,
    Predictions,
    Regression,
    accuracy,
    label_of_file,
    label_text,
    labels_of,
    negative_log_loss,
    shortened,
)

DIGITS = Classification(classes="0123456789")
CLOTHES = Classification(classes=("shirt", "shoe", "bag"))
TOPICS = MultiLabel(labels=("sport", "politics", "art"))


def logits(*rows: Sequence[float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def test_prediction_is_the_likeliest_class_with_its_probability() -> None:
    outputs = np.zeros((2, 10), np.float32)
    outputs[0, 7] = np.log(9)  # 9 against nine times 1
    outputs[1, 3] = 1000
    decoded = DIGITS.decode(outputs)
    assert list(decoded.values) == ["7", "3"]
    np.testing.assert_allclose(decoded.confidence_N, [0.5, 1.0])


def test_a_classification_gives_every_class_its_score_and_no_number() -> None:
    decoded = CLOTHES.decode(np.log(logits([0.2, 0.7, 0.1])))
    assert decoded.scores_of(0) == pytest.approx({"shirt": 0.2, "shoe": 0.7, "bag": 0.1}, abs=1e-6)
    assert decoded.number(0) is None


def test_of_very_many_classes_the_likeliest_have_scores() -> None:
    many = Classification(classes=[f"class {i}" for i in range(300)])
    scores = many.decode(np.arange(300, dtype=np.float32)[None]).scores_of(0)
    assert scores is not None
    assert len(scores) == SCORES_LIMIT
    assert "class 299" in scores
    assert "class 199" not in scores


def test_a_threshold_moves_the_decision_between_two_classes() -> None:
    outputs = np.log(logits([0.7, 0.3], [0.9, 0.1]))
    eager = Classification(classes=("fine", "broken"), threshold=0.2)
    assert list(Classification(classes=("fine", "broken")).decode(outputs).values) == ["fine", "fine"]
    decoded = eager.decode(outputs)
    assert list(decoded.values) == ["broken", "fine"]
    np.testing.assert_allclose(decoded.confidence_N, [0.3, 0.9], rtol=1e-6)


@pytest.mark.parametrize(
    ("label", "index"), [(1, 1), ("shoe", 1), (np.int64(2), 2), (2.0, 2), (np.str_("bag"), 2), (0, 0)]
)
def test_a_class_may_be_named_or_numbered(label: Any, index: int) -> None:
    assert CLOTHES.label_array([label]).tolist() == [index]
    assert label_text(CLOTHES, label) == CLOTHES.classes[index]


def test_a_name_counts_before_a_number() -> None:
    assert Classification(classes="321").label_array([1, "1", np.int32(3), True]).tolist() == [2, 2, 0, 2]
    assert DIGITS.label_array([7, "3"]).tolist() == [7, 3]
    assert Classification(classes=("false", "true")).label_array([True, np.bool_(False)]).tolist() == [1, 0]


@pytest.mark.parametrize("classes", ["12345", ("-1", "1"), ("7", "other")])
def test_where_a_name_is_an_integer_no_other_integer_is_a_position(classes: Any) -> None:
    with pytest.raises(ValueError, match="'0' is not one of"):
        Classification(classes).label_array([0])


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("hat", "'hat' is not one of shirt, shoe, bag"),
        (3, "'3' is not one of"),
        (-1, "'-1' is not one of"),
        (0.5, "'0.5' is not one of"),
        (None, "missing"),
        (float("nan"), "missing"),
    ],
)
def test_a_label_that_is_no_class_is_refused(label: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CLOTHES.label_array(["shoe", label])
    with pytest.raises(ValueError, match=why):
        label_text(CLOTHES, label)


@pytest.mark.parametrize("objective", [CLOTHES, TOPICS, Regression()], ids=lambda each: type(each).__name__)
def test_no_rows_are_no_predictions_and_no_labels(objective: Objective) -> None:
    decoded = objective.decode(np.zeros((0, objective.output_size), np.float32))
    assert (len(decoded.values), decoded.confidence_N.shape) == (0, (0,))
    assert len(labels_of(objective, [])) == 0


@pytest.mark.parametrize(
    "label",
    [["art", "sport"], ("sport", "art"), {"sport", "art"}, "sport,art", " art , sport ", '["art", "sport"]', [0, 2]],
)
def test_labels_may_be_a_list_or_text(label: Any) -> None:
    assert TOPICS.label_array([label]).tolist() == [[1, 0, 1]]
    assert label_text(TOPICS, label) == "sport,art", "as a prediction is written"


@pytest.mark.parametrize("label", [[], "", "[]", " "])
def test_none_of_the_labels_is_a_label_too(label: Any) -> None:
    assert TOPICS.label_array([label]).tolist() == [[0, 0, 0]]
    assert label_text(TOPICS, label) == ""


@pytest.mark.parametrize(
    ("label", "why"),
    [("music", "'music' is not one of"), ([None], "missing"), (None, "missing"), ("[art", "no.*|none")],
)
def test_labels_that_are_not_there_are_refused(label: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        TOPICS.label_array([label])


def test_a_multi_label_prediction_names_what_holds_and_scores_the_others() -> None:
    decoded = TOPICS.decode(logits([1, -2, 3], [-1, -1, -1]))
    assert list(decoded.values) == ["sport,art", ""]
    assert np.isnan(decoded.confidence_N).all()
    scores = decoded.scores_of(0)
    assert scores == pytest.approx({"sport": 0.731059, "politics": 0.119203, "art": 0.952574}, abs=1e-6)


def test_a_text_of_very_many_labels_is_cut_at_a_name() -> None:
    many = MultiLabel(labels=[f"label number {i}" for i in range(100)])
    (text,) = many.decode(np.ones((1, 100), np.float32)).values
    assert len(text) <= PREDICTION_LIMIT
    assert text.endswith(",…")
    assert set(text.removesuffix(",…").split(",")) < set(many.labels)


def test_the_lake_keeps_all_of_a_label_of_very_many_names() -> None:
    many = MultiLabel(labels=[f"label number {i}" for i in range(100)])
    kept = label_text(many, list(many.labels[:60]))
    assert len(kept) > PREDICTION_LIMIT
    np.testing.assert_array_equal(many.label_array([kept])[0], [1] * 60 + [0] * 40)
    (said,) = many.decode(many.label_array([kept]) * 6 - 3).values
    assert shortened(kept) == said, "a label is compared as a prediction is written"
    assert shortened("x" * 300) == "x" * 254 + "…"


def test_a_regression_predicts_numbers_within_its_bounds() -> None:
    bounded = Regression(minimum=0, maximum=100)
    for outputs in (logits([-5], [31.41592653], [1e6]), np.array([-5, 31.41592653, 1e6], np.float32)):
        decoded = bounded.decode(outputs)
        assert list(decoded.values) == ["0", "31.4159", "100"]
        assert [decoded.number(row) for row in range(3)] == pytest.approx([0, 31.41592653, 100], rel=1e-6)
        assert np.isnan(decoded.confidence_N).all()
        assert decoded.scores_of(0) is None


def test_a_number_that_is_nan_is_no_number() -> None:
    assert Regression(minimum=0).decode(np.array([np.nan], np.float32)).number(0) is None


def test_a_regression_takes_labels_that_are_numbers() -> None:
    array_N = Regression().label_array([1, "2.5", np.float32(0.5), True])
    assert array_N.tolist() == [1, 2.5, 0.5, 1]
    assert array_N.dtype == np.float64
    assert float(label_text(Regression(), 0.1)) == 0.1


@pytest.mark.parametrize("label", ["much", None, float("nan"), "inf", [1]])
def test_a_regression_refuses_other_labels(label: Any) -> None:
    with pytest.raises(ValueError, match=r"number|missing"):
        Regression().label_array([label])


@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 1), ()])
def test_outputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="regression needs"):
        Regression().loss(torch.zeros(shape), torch.zeros(3))
    if shape:
        with pytest.raises(ValueError, match="classes need"):
            CLOTHES.decode(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: Classification(classes=()), "no class"),
        (lambda: Classification(classes=("a", "a")), "twice"),
        (lambda: Classification(classes=("a", "b", "c"), threshold=0.5), "for two"),
        (lambda: Classification(classes=("a", "b"), threshold=1.5), "between 0 and 1"),
        (lambda: Classification(classes=("a", "b"), weights=(1,)), "each of 2 classes"),
        (lambda: Classification(classes=("a", "b"), weights=(1, 0)), "above 0"),
        (lambda: Classification(classes=("a", "b"), weights="equal"), "'equal' is not known"),  # type: ignore[arg-type]
        (lambda: MultiLabel(labels=("a,b",)), "comma"),
        (lambda: MultiLabel(labels=("a",), threshold=0), "between 0 and 1"),
        (lambda: Regression(minimum=1, maximum=1), "not below"),
    ],
)
def test_an_objective_that_cannot_be_is_refused_when_it_is_made(wrong: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        wrong()


def test_metrics() -> None:
    outputs = np.log(np.array([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]], np.float32))
    labels = np.array([0, 1, 0])
    assert accuracy(labels, outputs) == pytest.approx(1 / 3)
    assert negative_log_loss(labels, outputs) == pytest.approx(np.log([0.8, 0.5, 0.1]).mean(), rel=1e-5)


def test_loss_is_cross_entropy() -> None:
    outputs = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    expected = -(np.log(np.exp(2) / (np.exp(2) + 1)) + np.log(0.5)) / 2
    assert Classification(classes="ab").loss(outputs, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=1e-5)


def test_weights_weigh_the_classes() -> None:
    outputs, labels_N = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    right, wrong = -np.log(np.e / (np.e + 1)), -np.log(1 / (np.e + 1))
    weighed = Classification(classes="ab", weights=(1, 3)).loss(outputs, labels_N).item()
    assert weighed == pytest.approx((right + 3 * wrong) / 4, rel=1e-5)


def fitted_in_two_shards(classes: str, labels_N: NDArray[Any]) -> Classification:
    made = Classification(classes=classes, weights="balanced")
    shards = np.array_split(labels_N, 2)
    return made.fitted_to([sum(column) for column in zip(*map(made.label_statistics, shards), strict=True)])


def test_balanced_weights_are_those_of_the_labels_it_was_fitted_to() -> None:
    train_N = np.array([0] * 90 + [1] * 10)
    fitted = fitted_in_two_shards("ab", train_N)
    given = Classification(classes="ab", weights=(1, 9)).fitted_to([90, 10])
    outputs, labels_N = torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 2.0]]), torch.tensor([0, 1, 1])
    assert fitted.loss(outputs, labels_N).item() == pytest.approx(given.loss(outputs, labels_N).item(), rel=1e-6)


@pytest.mark.parametrize("weights", ["balanced", (1, 9)])
def test_parts_of_a_batch_add_up_to_the_whole(weights: Any) -> None:
    fitted = Classification(classes="ab", weights=weights).fitted_to([990, 10])
    outputs, labels_N = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([1] + [0] * 63)
    parts = [fitted.loss(outputs[part], labels_N[part]).item() for part in (slice(32), slice(32, 64))]
    assert sum(parts) / 2 == pytest.approx(fitted.loss(outputs, labels_N).item(), rel=1e-6)


def test_balanced_weights_of_a_class_without_rows_are_finite() -> None:
    fitted = fitted_in_two_shards("abc", np.array([0, 0, 1]))
    assert torch.isfinite(fitted.loss(torch.zeros(2, 3), torch.tensor([2, 2])))


def trained(objective: Objective, labels: Sequence[Any], features: NDArray[np.float32]) -> tuple[float, float]:
    """The loss before and after some steps of a linear model."""
    torch.manual_seed(0)
    model = torch.nn.Linear(features.shape[1], objective.output_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    labels_N = torch.tensor(labels_of(objective, labels))
    losses = []
    for _ in range(60):
        loss = objective.loss(model(torch.from_numpy(features)), labels_N)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize(
    ("objective", "label"),
    [
        (Classification(classes=("low", "high")), lambda x: "high" if x[0] > 0 else "low"),
        (Classification(classes=("low", "high"), weights="balanced"), lambda x: int(x[0] > 0)),
        (
            MultiLabel(labels=("first", "second")),
            lambda x: [n for n, v in zip(("first", "second"), x, strict=False) if v > 0],
        ),
        (Regression(), lambda x: 3 * x[0] - x[1] + 1),
    ],
)
def test_its_loss_falls_as_a_model_learns(objective: Objective, label: Any) -> None:
    features = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    first, last = trained(objective, [label(row) for row in features], features)
    assert last < first / 2


class Angle:
    """An objective of an application's own: the smallest that there can be."""

    output_size = 2

    def loss(self, outputs: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        return ((outputs - torch.stack([labels_N.cos(), labels_N.sin()], dim=1)) ** 2).mean()

    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        degrees_N = np.degrees(np.arctan2(outputs[:, 1], outputs[:, 0]))
        return Predictions(values=[f"{each:.0f}°" for each in degrees_N], confidence_N=np.full(len(outputs), np.nan))

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        return np.array([float(label) for label in labels], np.float32)


def test_an_objective_of_ones_own_needs_no_more_than_the_protocol() -> None:
    own: Objective = Angle()
    assert label_text(own, 1.5) == "1.5"
    assert labels_of(own, ["1.5"]).tolist() == [1.5]
    decoded = own.decode(logits([0, 1]))
    assert (list(decoded.values), decoded.number(0), decoded.scores_of(0)) == (["90°"], None, None)


def test_a_label_array_that_holds_no_numbers_is_refused() -> None:
    class Text(Angle):
        def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
            return np.array(labels)

    with pytest.raises(ValueError, match="label_array of Text gives"):
        labels_of(Text(), ["a", None])


@pytest.mark.parametrize("label", ["10000000", "10000000.0", "1.0E7"])
def test_a_class_that_a_file_writes_as_a_float_is_known(label: str) -> None:
    assert label_of_file(Classification(("5", "10000000")), label) == "10000000"
    with pytest.raises(ValueError, match=r"0\.5"):
        label_of_file(Classification(("0", "1")), "0.5")
