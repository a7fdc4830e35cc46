"""Metrics: what models are judged by. Named ones are scikit-learn's; an application may give functions of its own.

| name | of | better |
|---|---|---|
| accuracy | classes, labels (all of a row's have to be right) | higher |
| balanced_accuracy | classes | higher |
| f1_macro | classes, labels | higher |
| log_loss | classes, labels (the mean of each label's) | lower |
| average_precision, roc_auc | classes (of two, the second), labels; the mean over those that can be judged | higher |
| brier | classes, labels (the mean of each label's) | lower |
| calibration_error | classes | lower |
| rmse, mae | numbers | lower |
| r2 | numbers | higher |

Of a function, higher is better. Legend: N rows, C classes, L labels, K either.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deeplambda.application import Application, metric_names
from deeplambda.errors import BadInput, ConfigurationError
from deeplambda.objective import Classification, MultiLabel, Objective, Regression

Kind = Literal["classes", "labels", "numbers"]
_CALIBRATION_GROUPS = 15


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """What a named metric sees. labels: indices (N,), (N, L) of 0 and 1, or numbers (N,); decided: the same of the
    predictions. probabilities_NK: None for numbers. names: of the classes or labels."""

    labels: NDArray[Any]
    decided: NDArray[Any]
    probabilities_NK: NDArray[np.float64]
    names: tuple[str, ...]

    @property
    def truth(self) -> NDArray[np.bool_]:
        """(N, K)."""
        truth_NK: NDArray[np.bool_] = (
            self.labels.astype(bool) if self.labels.ndim == 2 else self.labels[:, None] == np.arange(len(self.names))
        )
        return truth_NK


@dataclass(frozen=True, kw_only=True)
class _Named:
    """combined: the metric of all rows from those of some and of the others, and how many rows these are; None for one
    that has to see all rows at once."""

    of: tuple[Kind, ...]
    lower_is_better: bool
    compute: Callable[[_Judged], float]
    combined: Callable[[Sequence[float], Sequence[int]], float] | None = None


def _accuracy(judged: _Judged) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(judged.labels, judged.decided))


def _balanced_accuracy(judged: _Judged) -> float:
    from sklearn.metrics import balanced_accuracy_score

    with warnings.catch_warnings(action="ignore"):  # of classes that are predicted but not there
        return float(balanced_accuracy_score(judged.labels, judged.decided))


def _f1_macro(judged: _Judged) -> float:
    from sklearn.metrics import f1_score

    if judged.labels.ndim == 1:  # of the classes that are there: one that is only predicted has cost theirs already
        there = np.unique(judged.labels)
        return float(f1_score(judged.labels, judged.decided, labels=there, average="macro", zero_division=0))
    each = zip(judged.labels.T, judged.decided.T, strict=True)
    return float(np.mean([f1_score(truth_N, decided_N, zero_division=0) for truth_N, decided_N in each]))


def _log_loss(judged: _Judged) -> float:
    from sklearn.metrics import log_loss

    if judged.labels.ndim == 1:
        return float(log_loss(judged.labels, judged.probabilities_NK, labels=range(len(judged.names))))
    return _mean_of_each(judged, lambda truth_N, score_N: log_loss(truth_N, score_N, labels=[0, 1]))


def _brier(judged: _Judged) -> float:
    from sklearn.metrics import brier_score_loss

    if judged.labels.ndim == 1:
        labels = list(range(len(judged.names)))
        return float(brier_score_loss(judged.labels, judged.probabilities_NK, labels=labels))
    return _mean_of_each(judged, lambda truth_N, score_N: brier_score_loss(truth_N, score_N, labels=[0, 1]))


def _calibration_error(judged: _Judged) -> float:
    return calibration_error(*_confidence(judged))


def _confidence(judged: _Judged) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    confidence_N = judged.probabilities_NK[np.arange(len(judged.labels)), judged.decided]
    return confidence_N, judged.decided == judged.labels


def _average_precision(judged: _Judged) -> float:
    from sklearn.metrics import average_precision_score

    return _mean_of_judgeable("average_precision", judged, average_precision_score)


def _roc_auc(judged: _Judged) -> float:
    from sklearn.metrics import roc_auc_score

    return _mean_of_judgeable("roc_auc", judged, roc_auc_score)


def _mean_of_each(judged: _Judged, score: Callable[..., float]) -> float:
    columns = zip(judged.truth.T, judged.probabilities_NK.T, strict=True)
    return float(np.mean([score(truth_N, score_N) for truth_N, score_N in columns]))


def _mean_of_judgeable(name: str, judged: _Judged, score: Callable[..., float]) -> float:
    """Of two classes the second's; else the mean over those of which there are rows and rows without."""
    truth_NK = judged.truth
    of_two = judged.labels.ndim == 1 and len(judged.names) == 2
    columns = [1] if of_two else list(range(len(judged.names)))
    judgeable = [k for k in columns if truth_NK[:, k].any() and not truth_NK[:, k].all()]
    if not judgeable:
        raise BadInput(
            f"{name} cannot be measured: all of the {len(truth_NK)} rows are alike in {_listed(judged, columns)}",
            "give the split that it is measured on rows with and without, or name another metric",
        )
    return float(np.mean([score(truth_NK[:, k], judged.probabilities_NK[:, k]) for k in judgeable]))


def _listed(judged: _Judged, columns: list[int]) -> str:
    return ", ".join(judged.names[k] for k in columns[:20])


def _rmse(judged: _Judged) -> float:
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(judged.labels, judged.decided))


def _mae(judged: _Judged) -> float:
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(judged.labels, judged.decided))


def _r2(judged: _Judged) -> float:
    from sklearn.metrics import r2_score

    if len(judged.labels) < 2:
        raise BadInput("r2 cannot be measured on one row", "give the split that it is measured on more rows")
    if np.ptp(judged.labels) == 0:  # there is nothing to explain: scikit-learn gives 0 whatever the model says
        raise BadInput(
            f"r2 cannot be measured: all of the {len(judged.labels)} rows have the label {judged.labels[0]:g}",
            "give the split that it is measured on rows with other labels, or name another metric",
        )
    return float(r2_score(judged.labels, judged.decided))


def _mean(values: Sequence[float], rows: Sequence[int]) -> float:
    return float(np.average(values, weights=rows))


def _root_mean_square(values: Sequence[float], rows: Sequence[int]) -> float:
    return float(np.sqrt(_mean([value**2 for value in values], rows)))


_NAMED: Mapping[str, _Named] = {
    "accuracy": _Named(of=("classes", "labels"), lower_is_better=False, compute=_accuracy, combined=_mean),
    "balanced_accuracy": _Named(of=("classes",), lower_is_better=False, compute=_balanced_accuracy),
    "f1_macro": _Named(of=("classes", "labels"), lower_is_better=False, compute=_f1_macro),
    "log_loss": _Named(of=("classes", "labels"), lower_is_better=True, compute=_log_loss, combined=_mean),
    "average_precision": _Named(of=("classes", "labels"), lower_is_better=False, compute=_average_precision),
    "roc_auc": _Named(of=("classes", "labels"), lower_is_better=False, compute=_roc_auc),
    "brier": _Named(of=("classes", "labels"), lower_is_better=True, compute=_brier, combined=_mean),
    "calibration_error": _Named(of=("classes",), lower_is_better=True, compute=_calibration_error),
    "rmse": _Named(of=("numbers",), lower_is_better=True, compute=_rmse, combined=_root_mean_square),
    "mae": _Named(of=("numbers",), lower_is_better=True, compute=_mae, combined=_mean),
    "r2": _Named(of=("numbers",), lower_is_better=False, compute=_r2),
}


def named_metrics(objective: Objective) -> list[str]:
    """Names of the metrics that fit an objective; none for one that is of no kind known here."""
    kind = _kind(objective)
    return [name for name, metric in _NAMED.items() if kind in metric.of]


def check_metrics(application: Application) -> None:
    """Raises: ConfigurationError for metrics that cannot be measured, or would be read the wrong way round."""
    names = metric_names(application)
    if not names:
        raise ConfigurationError(f"{application.name} names no metric", "give its `metrics` at least one")
    fitting = named_metrics(application.objective)
    for name in names:
        if isinstance(application.metrics, Mapping):
            if not callable(application.metrics[name]):
                raise ConfigurationError(
                    f"the metric {name!r} of {application.name} is no function",
                    "map names to functions of labels and outputs, or give a tuple of names",
                )
            if name in _NAMED and _NAMED[name].lower_is_better:
                raise ConfigurationError(
                    f"{application.name} gives a function for {name!r}, of which lower is better",
                    "of a function, higher is better: give its negative another name, or name the metric alone",
                )
        elif name not in fitting:
            objective = type(application.objective).__name__
            raise ConfigurationError(
                f"the metric {name!r} of {application.name} is not known for its objective {objective}",
                f"name one of {', '.join(fitting)}" if fitting else "map names to functions of labels and outputs",
            )


def lower_is_better(application: Application, name: str) -> bool:
    """The direction of one of the application's metrics."""
    return not isinstance(application.metrics, Mapping) and name in _NAMED and _NAMED[name].lower_is_better


def measured(
    application: Application, labels: NDArray[Any], outputs: NDArray[np.float32], names: Sequence[str] | None = None
) -> dict[str, float]:
    """The application's metrics by name. labels: as `label_array` gives them; outputs: raw ones of N rows. names: of
    those that are wanted; None: all.

    Raises: BadInput for a metric that these rows do not determine, or a function that raises.
    """
    names = names or metric_names(application)
    if isinstance(application.metrics, Mapping):
        return {name: _of_function(name, application.metrics[name], labels, outputs) for name in names}
    judged = _judged(application.objective, labels, outputs)
    return {name: _NAMED[name].compute(judged) for name in names}


def measured_by_piece(
    application: Application, pieces: Iterable[tuple[NDArray[Any], NDArray[np.float32]]]
) -> dict[str, float]:
    """The same of labels and outputs that come piece by piece, none of them empty.

    All pieces are held at once only where one of the metrics needs that. Raises: as `measured`.
    """
    names = metric_names(application)
    named = {} if isinstance(application.metrics, Mapping) else {name: _NAMED[name].combined for name in names}
    combined = {name: combine for name, combine in named.items() if combine is not None}
    whole = [name for name in names if name not in combined]
    of_pieces: list[dict[str, float]] = []
    rows: list[int] = []
    held: list[tuple[NDArray[Any], NDArray[np.float32]]] = []
    for labels, outputs in pieces:
        rows.append(len(labels))
        if combined:
            of_pieces.append(measured(application, labels, outputs, list(combined)))
        if whole:
            held.append((labels, outputs))
    figures = {name: combine([piece[name] for piece in of_pieces], rows) for name, combine in combined.items()}
    if whole:
        labels, outputs = (np.concatenate(arrays) for arrays in zip(*held, strict=True))
        figures |= measured(application, labels, outputs, whole)
    return {name: figures[name] for name in names}


def right_rows(objective: Objective, labels: NDArray[Any], outputs: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """(N,): whether the model's decision about a row is its label, or all of its labels; None for an objective whose
    predictions are not right or wrong. Raises: BadInput for outputs of another shape than the objective's."""
    if not isinstance(objective, (Classification, MultiLabel)):
        return None
    judged = _judged(objective, labels, outputs)
    right_NK: NDArray[np.bool_] = (judged.decided == judged.labels).reshape(len(labels), -1)
    return np.asarray(right_NK.all(axis=1))


def confidence(
    objective: Objective, labels: NDArray[Any], outputs: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
    """Of each row, how sure a classifier is of its answer, and whether that is right; None for other objectives.

    Raises: BadInput for outputs of another shape than the objective's.
    """
    return _confidence(_judged(objective, labels, outputs)) if isinstance(objective, Classification) else None


def calibration_error(confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_]) -> float:
    """The mean distance between how sure a model is of its answers and how many of them are right, over 15 groups of
    rows of like confidence.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), section 2, with groups of equal size, which are
    less at the mercy of a few rows.
    """
    surplus_N = (confidence_N - right_N)[np.argsort(confidence_N)]
    begins = np.linspace(0, len(surplus_N), min(_CALIBRATION_GROUPS, len(surplus_N)), endpoint=False).astype(int)
    return float(np.abs(np.add.reduceat(surplus_N, begins)).sum() / len(surplus_N))


def _of_function(name: str, metric: Callable[..., Any], labels: NDArray[Any], outputs: NDArray[np.float32]) -> float:
    try:
        return float(metric(labels, outputs))
    except BadInput:
        raise
    except Exception as exc:  # a user's code may raise anything
        raise BadInput(f"the metric {name!r} raised {type(exc).__name__}: {exc}", "fix the application") from exc


def _kind(objective: Objective) -> Kind | None:
    if isinstance(objective, Classification):
        return "classes"
    if isinstance(objective, MultiLabel):
        return "labels"
    return "numbers" if isinstance(objective, Regression) else None


def _judged(objective: Objective, labels: NDArray[Any], outputs: NDArray[np.float32]) -> _Judged:
    try:
        if isinstance(objective, Regression):
            return _Judged(
                labels=labels, decided=objective.numbers(outputs), probabilities_NK=np.empty((len(labels), 0)), names=()
            )
        assert isinstance(objective, (Classification, MultiLabel)), "check_metrics lets no other pass"
        probabilities_NK = objective.probabilities(outputs)
        names = objective.classes if isinstance(objective, Classification) else objective.labels
    except ValueError as exc:  # outputs of another shape than the objective's
        raise BadInput(f"the model's {exc}", "let build_model return what the objective expects") from exc
    return _Judged(
        labels=labels.astype(np.int64),
        decided=objective.decided(probabilities_NK),
        probabilities_NK=probabilities_NK,
        names=names,
    )
