"""What a model is trained for: its loss, and how its raw outputs become a prediction.

Legend: N rows, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """N decoded predictions. confidence_N: float64 in [0, 1], NaN where the objective has none."""

    values: Sequence[str]
    confidence_N: NDArray[np.float64]


class Objective(Protocol):
    """What the platform asks of an objective."""

    output_size: int

    def loss(self, outputs: "torch.Tensor", labels_N: "torch.Tensor") -> "torch.Tensor":
        """Mean loss of a batch, a scalar tensor."""

    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        """Raw outputs of N rows as predictions."""

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """N labels as the array that `loss` takes (as a tensor) and metrics take."""


class Classification:
    """One of C classes: cross entropy on logits; the prediction is the likeliest class's name."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.output_size = len(self.classes)

    def loss(self, outputs: "torch.Tensor", labels_N: "torch.Tensor") -> "torch.Tensor":
        """Cross entropy. outputs: (N, C) logits; labels_N: int64 class indices."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs.float(), labels_N)

    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        """outputs: (N, C) logits; confidence is the softmax probability of the predicted class."""
        shifted_NC = outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True)
        probabilities_NC = np.exp(shifted_NC)
        probabilities_NC /= probabilities_NC.sum(axis=1, keepdims=True)
        best_N = probabilities_NC.argmax(axis=1)
        return Predictions(
            values=[self.classes[i] for i in best_N], confidence_N=probabilities_NC[np.arange(len(best_N)), best_N]
        )

    def label_array(self, labels: Sequence[Any]) -> NDArray[np.int64]:
        """Class indices from class indices (ints) or names. Raises: ValueError for a class that is not there."""
        index = {name: i for i, name in enumerate(self.classes)}
        try:
            return np.array([index[str(label)] for label in labels], dtype=np.int64)
        except KeyError as exc:
            raise ValueError(f"label {exc} is not one of the classes {', '.join(self.classes)}") from exc


def accuracy(labels_N: NDArray[Any], outputs_NC: NDArray[np.float32]) -> float:
    """Share of rows whose largest output is the true class, in [0, 1]."""
    return float((outputs_NC.argmax(axis=1) == labels_N).mean())


def negative_log_loss(labels_N: NDArray[Any], outputs_NC: NDArray[np.float32]) -> float:
    """Mean log-likelihood of the true class, in nats; 0 is perfect, higher is better."""
    logits_NC = outputs_NC.astype(np.float64)
    top_N = logits_NC.max(axis=1)
    log_sum_N = top_N + np.log(np.exp(logits_NC - top_N[:, None]).sum(axis=1))
    return float((logits_NC[np.arange(len(labels_N)), labels_N] - log_sum_N).mean())
