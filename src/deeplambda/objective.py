"""What a model is trained for: its loss, how its raw outputs become a prediction, and what a label may be.

`Classification`, `MultiLabel` and `Regression` are here. A class of your own does as well when it has what `Objective`
lists; `Predictions` of its own may leave out what it does not have.

Legend: N rows, C classes, L labels.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_OF_FLOAT = re.compile(r"-?\d+\.\d+(E\d{1,2})?")
PREDICTION_LIMIT = 255
"""Characters of a prediction: what its column in MySQL holds."""
SCORES_LIMIT = 100
"""Of how many classes a prediction carries the scores: the likeliest ones. They travel with every event."""
_SCORE_DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """N decoded predictions.

    values: as text. confidence_N: float64 in [0, 1], NaN where the objective has none. numbers_N: float64, the
    predictions as numbers where they are numbers. scores: for each row, probabilities by the name of class or label.
    """

    values: Sequence[str]
    confidence_N: NDArray[np.float64]
    numbers_N: NDArray[np.float64] | None = None
    scores: Sequence[Mapping[str, float] | None] | None = None

    def number(self, row: int) -> float | None:
        """The row's prediction as a number; None where it is none."""
        return None if self.numbers_N is None or math.isnan(self.numbers_N[row]) else float(self.numbers_N[row])

    def scores_of(self, row: int) -> dict[str, float] | None:
        """The row's probabilities by name; None where the objective has none."""
        found = None if self.scores is None else self.scores[row]
        return None if found is None else dict(found)


class Objective(Protocol):
    """What the platform asks of an objective.

    Three more methods are used where they are: `label_text(label)`, the text under which a label is kept in the lake;
    `label_statistics(labels_N)`, numbers that add up over the train split, such as rows by class, at most a thousand or
    so; and `fitted_to(statistics)`, an objective that knows their sum.
    """

    output_size: int

    def loss(self, outputs: "torch.Tensor", labels_N: "torch.Tensor") -> "torch.Tensor":
        """Mean loss of a batch, a scalar tensor."""

    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        """Raw outputs of N rows as predictions."""

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """N labels as the array that `loss` takes (as a tensor) and metrics take. Raises: ValueError for a wrong one.

        labels: as `Application.examples` gives them, and as text, which is how the lake keeps them.
        """


class Classification:
    """One of C classes: cross entropy on logits; the prediction is the likeliest class's name.

    weights: of the classes in the loss. "balanced" weighs each inversely to how often it is in the train split, so that
    all weigh the same together. threshold: for two classes, the probability from which the second is predicted.
    """

    def __init__(
        self,
        classes: Sequence[str],
        weights: Literal["balanced"] | Sequence[float] | None = None,
        threshold: float | None = None,
    ) -> None:
        self.classes = _unique(classes, "class")
        self.output_size = len(self.classes)
        if threshold is not None and (self.output_size != 2 or not 0 < threshold < 1):
            raise ValueError(
                f"threshold {threshold} for {self.output_size} classes: it is for two, and between 0 and 1"
            )
        if isinstance(weights, str):
            if weights != "balanced":
                raise ValueError(f"weights {weights!r} is not known; give 'balanced' or one number for each class")
        elif weights is not None:
            weights = tuple(map(float, weights))
            if len(weights) != self.output_size or not all(math.isfinite(each) and each > 0 for each in weights):
                raise ValueError(f"weights {weights}: give each of {self.output_size} classes a number above 0")
        self.weights: Literal["balanced"] | tuple[float, ...] | None = weights
        self.threshold = threshold
        self._index = {name: i for i, name in enumerate(self.classes)}
        self._counts_C: NDArray[np.int64] | None = None

    def label_statistics(self, labels_N: NDArray[Any]) -> list[float]:
        """Rows by class where classes have weights, else nothing."""
        return [] if self.weights is None else self._counted(labels_N).astype(float).tolist()

    def fitted_to(self, statistics: Sequence[float]) -> Self:
        """An objective whose weights are those of so many rows by class. The trainer calls it with the sum over the
        train split; while that is still being prepared, over its shards so far.
        """
        if self.weights is None or not len(statistics):  # a data set of before has none where weights are given
            return self
        fitted = type(self).__new__(type(self))
        fitted.__dict__ |= self.__dict__ | {"_counts_C": np.asarray(statistics).astype(np.int64)}
        return fitted

    def loss(self, outputs: "torch.Tensor", labels_N: "torch.Tensor") -> "torch.Tensor":
        """Cross entropy. outputs: (N, C) logits; labels_N: int64 class indices.

        Weights have a mean of 1 over the rows of the train split, and elsewhere over those with the given labels; a
        row's does not depend on what else is in its batch, so that parts of a batch add up to the whole.
        """
        import torch
        from torch.nn.functional import cross_entropy

        if self.weights is None:
            return cross_entropy(outputs.float(), labels_N)
        weight_C = torch.as_tensor(self._class_weights(labels_N), dtype=torch.float32, device=outputs.device)
        return cross_entropy(outputs.float(), labels_N, weight=weight_C, reduction="none").mean()

    def _class_weights(self, labels_N: "torch.Tensor") -> NDArray[np.float64]:
        counts_C = self._counts_C if self._counts_C is not None else self._counted(labels_N.detach().cpu().numpy())
        # A class without a row has no weight to speak of, but a batch of it alone must not divide by zero.
        weights_C = 1 / np.maximum(counts_C, 1) if self.weights == "balanced" else np.asarray(self.weights)
        scaled_C: NDArray[np.float64] = weights_C * counts_C.sum() / (weights_C @ counts_C)
        return scaled_C

    def _counted(self, labels_N: NDArray[Any]) -> NDArray[np.int64]:
        return np.bincount(labels_N.astype(np.int64), minlength=self.output_size).astype(np.int64)

    def probabilities(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """The softmax of logits (N, C)."""
        if outputs.ndim != 2 or outputs.shape[1] != self.output_size:
            raise ValueError(f"outputs have shape {outputs.shape}, {self.output_size} classes need (N, C) logits")
        shifted_NC = outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True)
        probabilities_NC = np.exp(shifted_NC)
        probabilities_NC /= probabilities_NC.sum(axis=1, keepdims=True)
        return probabilities_NC  # type: ignore[no-any-return]

    def decided(self, probabilities_NC: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices of the predicted classes."""
        if self.threshold is not None:
            return (probabilities_NC[:, 1] >= self.threshold).astype(np.int64)
        best_N: NDArray[np.int64] = probabilities_NC.argmax(axis=1)
        return best_N

    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        """outputs: (N, C) logits; confidence is the softmax probability of the predicted class."""
        probabilities_NC = self.probabilities(outputs)
        chosen_N = self.decided(probabilities_NC)
        return Predictions(
            values=[self.classes[i] for i in chosen_N],
            confidence_N=probabilities_NC[np.arange(len(chosen_N)), chosen_N],
            scores=_scores(self.classes, probabilities_NC),
        )

    def label_array(self, labels: Sequence[Any]) -> NDArray[np.int64]:
        """Class indices, from names; or from class indices, where no class has an integer for a name.

        Raises: ValueError for a class that is not there, or a label that is None.
        """
        return np.array([_position(label, self._index, self.classes) for label in labels], dtype=np.int64)

    def label_text(self, label: Any) -> str:
        """The class's name."""
        return self.classes[_position(label, self._index, self.classes)]


class MultiLabel:
    """Any of L labels at once: binary cross entropy on logits; the prediction is the names of those that hold.

    threshold: the probability from which a label holds. A label is a list of names, or text: a JSON list, or names with
    commas between them; an empty text is none of the labels. No confidence: `scores` has each label's probability.
    """

    def __init__(self, labels: Sequence[str], threshold: float = 0.5) -> None:
        self.labels = _unique(labels, "label")
        if odd := [name for name in self.labels if "," in name or name != name.strip() or name.startswith("[")]:
            raise ValueError(
                f"the label {odd[0]!r} has a comma, a bracket in front or space around it: name it without"
            )
        if not 0 < threshold < 1:
            raise ValueError(f"threshold {threshold} is not between 0 and 1")
        self.threshold = threshold
        self.output_size = len(self.labels)
        self._index = {name: i for i, name in enumerate(self.labels)}

    def loss(self, outputs: "torch.Tensor", labels_NL: "torch.Tensor") -> "torch.Tensor":
        """Binary cross entropy, the mean over rows and labels. outputs: (N, L) logits; labels_NL: 0 or 1."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(outputs.float(), labels_NL.float())

    def probabilities(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """The sigmoid of logits (N, L)."""
        if outputs.ndim != 2 or outputs.shape[1] != self.output_size:
            raise ValueError(f"outputs have shape {outputs.shape}, {self.output_size} labels need (N, L) logits")
        return (1 + np.tanh(outputs.astype(np.float64) / 2)) / 2

    def decided(self, probabilities_NL: NDArray[np.float64]) -> NDArray[np.int64]:
        """1 where the label holds."""
        return (probabilities_NL >= self.threshold).astype(np.int64)

    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        """outputs: (N, L) logits."""
        probabilities_NL = self.probabilities(outputs)
        return Predictions(
            values=[shortened(self._text(holds_L)) for holds_L in self.decided(probabilities_NL)],
            confidence_N=np.full(len(outputs), np.nan),
            scores=_scores(self.labels, probabilities_NL),
        )

    def label_array(self, labels: Sequence[Any]) -> NDArray[np.float32]:
        """(N, L), 1 where the label holds. Raises: ValueError for one that is not there, or a label that is None."""
        array_NL = np.zeros((len(labels), self.output_size), dtype=np.float32)
        for row, label in enumerate(labels):
            array_NL[row, self._positions(label)] = 1
        return array_NL

    def label_text(self, label: Any) -> str:
        """All names, in the order of `labels`, with commas between them."""
        return self._text(self.label_array([label])[0])

    def _positions(self, label: Any) -> list[int]:
        if _missing(label):
            raise ValueError("the label is missing; give an empty list where no label holds")
        if isinstance(label, str):
            label = _listed_names(label)
        elif isinstance(label, np.ndarray):
            label = label.tolist()
        if not isinstance(label, (list, tuple, set, frozenset)):
            label = [label]
        return [_position(name, self._index, self.labels) for name in label]

    def _text(self, holds_L: NDArray[Any]) -> str:
        return ",".join(name for name, holds in zip(self.labels, holds_L, strict=True) if holds)


class Regression:
    """One number: mean squared error on outputs (N,) or (N, 1).

    minimum, maximum: what a prediction is clipped to; the loss sees the output as it is. No confidence and no scores.
    """

    output_size = 1

    def __init__(self, minimum: float | None = None, maximum: float | None = None) -> None:
        if minimum is not None and maximum is not None and not minimum < maximum:
            raise ValueError(f"minimum {minimum} is not below maximum {maximum}")
        self.minimum, self.maximum = minimum, maximum

    def loss(self, outputs: "torch.Tensor", labels_N: "torch.Tensor") -> "torch.Tensor":
        """Mean squared error. outputs: (N,) or (N, 1)."""
        from torch.nn.functional import mse_loss

        self._check(tuple(outputs.shape))
        return mse_loss(outputs.float().reshape(-1), labels_N.float())

    def numbers(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,), clipped. outputs: (N,) or (N, 1)."""
        self._check(outputs.shape)
        numbers_N = outputs.astype(np.float64).reshape(len(outputs))
        if self.minimum is None and self.maximum is None:
            return numbers_N
        return np.clip(numbers_N, self.minimum, self.maximum)

    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        """outputs: (N,) or (N, 1)."""
        numbers_N = self.numbers(outputs)
        return Predictions(
            values=[format(number, ".6g") for number in numbers_N],
            confidence_N=np.full(len(numbers_N), np.nan),
            numbers_N=numbers_N,
        )

    def label_array(self, labels: Sequence[Any]) -> NDArray[np.float64]:
        """float64. Raises: ValueError for what is not a finite number, or a label that is None."""
        return np.array([_number(label) for label in labels], dtype=np.float64)

    def label_text(self, label: Any) -> str:
        """The number, with all its digits."""
        return repr(_number(label))

    def _check(self, shape: tuple[int, ...]) -> None:
        if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
            raise ValueError(f"outputs have shape {shape}, a regression needs (N,) or (N, 1)")


def label_text(objective: Objective, label: Any) -> str:
    """The text under which the lake keeps a label. Raises: ValueError when it is none of the objective's."""
    text_of = getattr(objective, "label_text", None)
    if text_of is not None:
        return str(text_of(label))
    if label is None:
        raise ValueError("the label is missing")
    if isinstance(label, (list, tuple, dict, np.ndarray)):
        label = json.dumps(label.tolist() if isinstance(label, np.ndarray) else label)
    objective.label_array([str(label)])
    return str(label)


def label_of_file(objective: Objective, label: Any) -> str:
    """As `label_text`, of a label in a file, where a column of integers with gaps has floats: 5.0, and 1.0E7."""
    try:
        return label_text(objective, label)
    except ValueError:
        if isinstance(label, str) and _OF_FLOAT.fullmatch(label) and (number := float(label)).is_integer():
            return label_text(objective, str(int(number)))
        raise


def labels_of(objective: Objective, labels: Sequence[Any]) -> NDArray[Any]:
    """The array that the objective makes of N labels, checked. Raises: ValueError."""
    array = np.asarray(objective.label_array(labels))
    if array.dtype.kind not in "iufb" or array.ndim == 0 or len(array) != len(labels):
        raise ValueError(
            f"label_array of {type(objective).__name__} gives {array.dtype} of shape {array.shape} for {len(labels)} "
            "labels; it has to give numbers, a row for each label"
        )
    return array


def statistics_of(objective: Objective, labels_N: NDArray[Any]) -> list[float]:
    """The objective's statistics of N labels; none where it asks for none."""
    of = getattr(objective, "label_statistics", None)
    return [float(each) for each in of(labels_N)] if of else []


def shortened(text: str) -> str:
    """A label as a prediction is written: of names with commas between them as many as fit, and "…" for the others."""
    if len(text) <= PREDICTION_LIMIT:
        return text
    whole, comma, _ = text[: PREDICTION_LIMIT - 1].rpartition(",")
    return f"{whole},…" if comma else f"{text[: PREDICTION_LIMIT - 1]}…"


def accuracy(labels_N: NDArray[Any], outputs_NC: NDArray[np.float32]) -> float:
    """Share of rows whose largest output is the true class, in [0, 1]."""
    return float((outputs_NC.argmax(axis=1) == labels_N).mean())


def negative_log_loss(labels_N: NDArray[Any], outputs_NC: NDArray[np.float32]) -> float:
    """Mean log-likelihood of the true class, in nats; 0 is perfect, higher is better."""
    logits_NC = outputs_NC.astype(np.float64)
    top_N = logits_NC.max(axis=1)
    log_sum_N = top_N + np.log(np.exp(logits_NC - top_N[:, None]).sum(axis=1))
    return float((logits_NC[np.arange(len(labels_N)), labels_N] - log_sum_N).mean())


def _unique(names: Sequence[str], what: str) -> tuple[str, ...]:
    found = tuple(names)
    if not found:
        raise ValueError(f"there is no {what}; name at least one")
    for name in found:
        if not isinstance(name, str) or not name or len(name) > PREDICTION_LIMIT:
            raise ValueError(f"the {what} {name!r} is not a text of 1 to {PREDICTION_LIMIT} characters")
        if found.count(name) > 1:
            raise ValueError(f"the {what} {name!r} is there twice")
    return found


def _position(label: Any, index: Mapping[str, int], names: Sequence[str]) -> int:
    """Where a label stands among the names; an integer may be the position itself where no name is an integer."""
    if _missing(label):
        raise ValueError("the label is missing")
    text = str(label)
    if text in index:
        return index[text]
    if isinstance(label, (bool, np.bool_)) and text.lower() in index:
        return index[text.lower()]
    if isinstance(label, (int, float, np.integer, np.floating)) and float(label).is_integer():
        number = int(label)  # a column of integers with gaps comes as floats
        if str(number) in index:
            return index[str(number)]
        if 0 <= number < len(names) and not _has_number(tuple(names)):
            return number
    raise ValueError(f"label {text!r} is not one of {', '.join(names[:20])}{', …' if len(names) > 20 else ''}")


@cache
def _has_number(names: tuple[str, ...]) -> bool:
    """Whether an integer is one of the names, so that no other integer can be meant as a position."""
    return any(name.removeprefix("-").isdecimal() for name in names)


def _missing(label: Any) -> bool:
    return label is None or (isinstance(label, (float, np.floating)) and math.isnan(label))


def _number(label: Any) -> float:
    if label is None:
        raise ValueError("the label is missing")
    try:
        number = float(label)
    except (TypeError, ValueError) as exc:
        raise ValueError(f"label {label!r} is not a number") from exc
    if not math.isfinite(number):
        raise ValueError(f"label {label!r} is not a finite number")
    return number


def _listed_names(text: str) -> list[Any]:
    if not text.lstrip().startswith("["):
        return [name.strip() for name in text.split(",") if name.strip()]
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise ValueError(f"label {text!r} begins as a JSON list and is none: {exc}") from exc
    return found  # type: ignore[no-any-return]


def _scores(names: Sequence[str], probabilities_NC: NDArray[np.float64]) -> list[dict[str, float]]:
    rounded_NC = probabilities_NC.round(_SCORE_DECIMALS)
    if len(names) <= SCORES_LIMIT:
        return [dict(zip(names, row, strict=True)) for row in rounded_NC.tolist()]
    likeliest_NK = np.argsort(-probabilities_NC, axis=1, kind="stable")[:, :SCORES_LIMIT]
    return [{names[i]: float(row[i]) for i in best} for row, best in zip(rounded_NC, likeliest_NK, strict=True)]
