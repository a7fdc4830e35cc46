"""The trainer: a model, its optimiser and its schedule. It knows nothing of where rows come from.

Legend: N rows, B rows of a batch, … the shape of one row's features.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from batch_layer.compute import Compute, as_model_input, channels_last_rows
from deeplambda.application import Application
from deeplambda.errors import BadInput, DeepLambdaError, UnfitModel
from deeplambda.features import Features, as_taken, by_name, call, row_count
from deeplambda.metrics import measured
from deeplambda.records.featurizer import said
from deeplambda.state.card import TrainerHyperparameters, model_arguments

WARM_UP = 0.2
"""Share of the run during which the learning rate rises."""
_CHECK_EVERY = 16
_EVALUATION_ROWS = 1000

Advanced = Callable[[int, float], None]
"""Called as training goes on with (rows since the last call, mean loss since the epoch began)."""


def all_hyperparameters(application: Application, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The application's defaults with `overrides`, checked; `seed` is 0 unless given. Raises: BadInput."""
    chosen = {"seed": 0} | dict(application.hyperparameters) | dict(overrides)
    known = {*application.hyperparameters, *TrainerHyperparameters.model_fields}
    if unknown := sorted(set(overrides) - known):
        raise BadInput(
            f"{application.name} has no hyperparameter {unknown[0]!r}", f"choose from {', '.join(sorted(known))}"
        )
    try:
        checked = TrainerHyperparameters.model_validate(chosen)
        # A run's id follows from these: what is off must not tell it apart from runs of before it could be on.
        return chosen | checked.model_dump(exclude_defaults=True)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise BadInput(f"hyperparameter {name!r}: {first['msg']}", f"give another {name}") from exc


def learning_rate_factor(progress: float) -> float:
    """Share of the top learning rate at `progress` (0 the run's begin, 1 its end): linear up, cosine down to 0.

    Source: Smith & Topin, Super-Convergence (2018), with the cosine of Loshchilov & Hutter, SGDR (2017).
    """
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.01)
    fallen = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return (1 + math.cos(math.pi * fallen)) / 2


@dataclass(frozen=True)
class Rows:
    """Rows in memory: features by name, as `channels_last_rows` keeps them, and labels (N,)."""

    features: dict[str, Tensor]
    labels_N: Tensor

    @classmethod
    def of(cls, features: Features, labels_N: NDArray[Any]) -> "Rows":
        """A copy that torch owns. features: arrays (N, …)."""
        return cls(
            {name: channels_last_rows(torch.tensor(array)) for name, array in features.items()}, torch.tensor(labels_N)
        )

    @classmethod
    def joined(cls, shards: "list[Rows]") -> "Rows":
        """All rows of the shards, in their order."""
        shards = [rows for rows in shards if len(rows)]
        names = shards[0].features if shards else ()
        return cls(
            {name: torch.cat([rows.features[name] for rows in shards]) for name in names},
            torch.cat([rows.labels_N for rows in shards]) if shards else torch.zeros(0),
        )

    def chosen(self, rows_B: Tensor) -> "Rows":
        """Some of the rows."""
        return Rows({name: tensor[rows_B] for name, tensor in self.features.items()}, self.labels_N[rows_B])

    def __len__(self) -> int:
        return len(self.labels_N)


class Trainer:
    """One run's model on its way. hyperparameters: from `all_hyperparameters`. Equal seeds give equal runs."""

    def __init__(self, application: Application, hyperparameters: Mapping[str, Any], compute: Compute) -> None:
        self._application = copy.copy(application)  # its objective is replaced by one that knows the labels
        self._objective = application.objective
        self._labels: list[Tensor] = []
        self._settings = TrainerHyperparameters.model_validate(hyperparameters)
        self._compute = compute
        self._epoch = self._done_rows = 0
        self._loss_sum = torch.zeros((), device=compute.device)
        torch.set_flush_denormal(True)  # moments of weights that get no gradient decay into denormals: AdamW × 14
        torch.manual_seed(self._settings.seed)
        self.model = compute.place(application.build_model(**model_arguments(hyperparameters)))
        with _own_code(application, "optimizer"):
            self._optimizer = application.optimizer(
                self.model.parameters(), dict(hyperparameters) | self._settings.model_dump()
            )
        if not isinstance(self._optimizer, torch.optim.Optimizer):
            raise BadInput(
                f"optimizer of {application.name} gives {type(self._optimizer).__name__}",
                "return a torch.optim.Optimizer",
            )
        self._top_rates = [float(group["lr"]) for group in self._optimizer.param_groups]

    def begin_epoch(self, epoch: int) -> None:
        """Epochs count from 1. Randomness depends on seed and epoch alone, so a resumed run repeats no other's."""
        self._epoch = epoch
        self._done_rows = 0
        self._labels = []
        self._loss_sum = torch.zeros((), device=self._compute.device)
        torch.manual_seed(self._settings.seed * 1_000_003 + epoch)
        self.model.train()

    def train_on(self, rows: Rows, epoch_rows: float, advanced: Advanced = lambda rows, loss: None) -> None:
        """One pass over `rows`, shuffled. epoch_rows: how many the epoch will have in all; it sets the schedule.

        Raises: UnfitModel when the loss is not finite.
        """
        if not len(rows):
            return
        self._fit_objective(rows.labels_N)
        batches = torch.randperm(len(rows)).tensor_split(max(1, round(len(rows) / self._settings.batch_size)))
        unreported = 0
        for i, chosen_B in enumerate(batches, start=1):
            self._step(
                {name: as_model_input(self._compute.batch(tensor, chosen_B)) for name, tensor in rows.features.items()},
                self._compute.batch(rows.labels_N, chosen_B),
                (self._epoch - 1 + min(self._done_rows / epoch_rows, 1.0)) / self._settings.epochs,
            )
            self._done_rows += len(chosen_B)
            unreported += len(chosen_B)
            if i % _CHECK_EVERY == 0 or i == len(batches):
                advanced(unreported, self.mean_loss())
                unreported = 0

    def _fit_objective(self, labels_N: Tensor) -> None:
        """Tell the objective the labels of the epoch so far, if it asks: in the first epoch shards come one by one."""
        fitted_to = getattr(self._objective, "fitted_to", None)
        if fitted_to is not None:
            self._labels.append(labels_N)
            fitted = fitted_to(torch.cat(self._labels).numpy())
            vars(self._application)["objective"] = fitted  # of this copy alone, not of the class

    def _step(self, features: dict[str, Tensor], labels_B: Tensor, progress: float) -> None:
        factor = learning_rate_factor(progress)
        for group, top_rate in zip(self._optimizer.param_groups, self._top_rates, strict=True):
            group["lr"] = top_rate * factor
        features = self._augmented(features, len(labels_B))
        with self._compute.autocast():
            outputs = call(self.model, features)
        with _own_code(self._application, "loss"):
            loss = self._application.loss(outputs.float(), labels_B, as_taken(features))
            if not (isinstance(loss, Tensor) and loss.ndim == 0):
                raise BadInput("what it gives is not a scalar tensor")
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self._settings.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.gradient_clip)
        self._optimizer.step()
        self._loss_sum += loss.detach() * len(labels_B)

    def _augmented(self, features: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
        if type(self._application).augment is Application.augment:
            return features
        with _own_code(self._application, "augment"):
            given = self._application.augment(as_taken(features))
            found = by_name(given)
            if found.keys() != features.keys() or row_count(found) != rows:
                raise BadInput(
                    f"it gives {row_count(found)} rows of {', '.join(found)} for {rows} of {', '.join(features)}"
                )
        return found

    def mean_loss(self) -> float:
        """Mean loss of the epoch so far. Raises: UnfitModel when it is not finite."""
        loss = self._loss_sum.item() / max(self._done_rows, 1)
        if not math.isfinite(loss):
            raise UnfitModel(
                f"the loss became {loss} in epoch {self._epoch} of {self._application.name}",
                f"train with a smaller learning rate than {self._settings.learning_rate:g}: "
                f"--set learning_rate={self._settings.learning_rate / 10:g}",
            )
        return loss

    def evaluate(self, rows: Rows) -> dict[str, float]:
        """The application's metrics, in fp32 as the model will serve. Raises: UnfitModel when one is not finite."""
        metrics = judged(self._application, self.model, rows, self._compute.device)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise UnfitModel(
                    f"{name} of {self._application.name} is {value} after epoch {self._epoch}",
                    "train with a smaller learning rate",
                )
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on, on the CPU: `model.…` and `optimizer.<parameter>.…`."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for parameter, moments in self._optimizer.state_dict()["state"].items():
            for name, moment in moments.items():
                if moment is not None:  # SGD without momentum keeps a place for it
                    tensors[f"optimizer.{parameter}.{name}"] = torch.as_tensor(moment)
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up where `state()` was called. Raises: BadInput when it is another model's."""
        moments: dict[int, dict[str, Tensor]] = {}
        model: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "model":
                model[name] = tensor
            else:
                parameter, _, moment = name.partition(".")
                moments.setdefault(int(parameter), {})[moment] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        try:
            self.model.load_state_dict(model)
            for index, of_parameter in moments.items():
                for moment, tensor in of_parameter.items():
                    # The fused optimiser walks memory: a moment must lie as its parameter does.
                    if tensor.ndim and tensor.shape == parameters[index].shape:
                        of_parameter[moment] = torch.empty_like(parameters[index]).copy_(tensor)
            self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        except (RuntimeError, ValueError, IndexError) as exc:
            raise BadInput(f"the checkpoint does not fit {self._application.name}'s model: {exc}") from exc


def judged(application: Application, model: torch.nn.Module, rows: Rows, device: torch.device) -> dict[str, float]:
    """The application's metrics of a model on these rows, as `outputs_of` has them.

    Raises: BadInput for a metric that these rows do not determine.
    """
    return measured(application, rows.labels_N.numpy(), outputs_of(model, rows, device))


def outputs_of(model: torch.nn.Module, rows: Rows, device: torch.device) -> NDArray[np.float32]:
    """The outputs, (N, C) or (N,), in fp32. model: on `device`; left in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        outputs: Tensor = torch.cat(
            [
                call(
                    model,
                    {
                        name: as_model_input(tensor[first : first + _EVALUATION_ROWS].to(device))
                        for name, tensor in rows.features.items()
                    },
                )
                .float()
                .cpu()
                for first in range(0, len(rows), _EVALUATION_ROWS)
            ]
        )
    return outputs.numpy()


@contextmanager
def _own_code(application: Application, method: str) -> Iterator[None]:
    """What a user's method raises, as `BadInput` with the line that it came from."""
    try:
        yield
    except BadInput as exc:
        raise BadInput(f"{method} of {application.name}: {exc.message}", exc.remedy or "fix the application") from exc
    except DeepLambdaError:
        raise
    except Exception as exc:
        raise BadInput(f"{method} of {application.name} raised {said(exc)}", "fix the application") from exc
