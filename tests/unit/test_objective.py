"""Outputs become predictions; metrics are what their names say."""

import numpy as np
import pytest

from deeplambda.objective import Classification, accuracy, negative_log_loss

DIGITS = Classification(classes="0123456789")


def test_prediction_is_the_likeliest_class_with_its_probability() -> None:
    outputs = np.zeros((2, 10), np.float32)
    outputs[0, 7] = np.log(9)  # 9 against nine times 1
    outputs[1, 3] = 1000
    decoded = DIGITS.decode(outputs)
    assert list(decoded.values) == ["7", "3"]
    np.testing.assert_allclose(decoded.confidence_N, [0.5, 1.0])


def test_labels_may_be_names_or_indices() -> None:
    assert DIGITS.label_array([7, "3"]).tolist() == [7, 3]
    with pytest.raises(ValueError, match="not one of the classes"):
        DIGITS.label_array(["ten"])


def test_metrics() -> None:
    outputs = np.log(np.array([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]], np.float32))
    labels = np.array([0, 1, 0])
    assert accuracy(labels, outputs) == pytest.approx(1 / 3)
    assert negative_log_loss(labels, outputs) == pytest.approx(np.log([0.8, 0.5, 0.1]).mean(), rel=1e-5)


def test_loss_is_cross_entropy() -> None:
    import torch

    outputs = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    expected = -(np.log(np.exp(2) / (np.exp(2) + 1)) + np.log(0.5)) / 2
    assert Classification(classes="ab").loss(outputs, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=1e-5)
