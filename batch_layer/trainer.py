"""The trainer: a model, its optimiser and its schedule. It knows nothing of where rows come from.

Legend: N rows, B rows of a batch, … the shape of one row's features.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from batch_layer.compute import Compute, as_model_input, channels_last_rows
from deeplambda.application import Application
from deeplambda.errors import BadInput, UnfitModel
from deeplambda.features import Features, call
from deeplambda.metrics import measured
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
        return chosen | TrainerHyperparameters.model_validate(chosen).model_dump()
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
        self._application = application
        self._settings = TrainerHyperparameters.model_validate(hyperparameters)
        self._compute = compute
        self._epoch = self._done_rows = 0
        self._loss_sum = torch.zeros((), device=compute.device)
        torch.set_flush_denormal(True)  # moments of weights that get no gradient decay into denormals: AdamW × 14
        torch.manual_seed(self._settings.seed)
        self.model = compute.place(application.build_model(**model_arguments(hyperparameters)))
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self._settings.learning_rate,
            weight_decay=self._settings.weight_decay,
            fused=True,
        )

    def begin_epoch(self, epoch: int) -> None:
        """Epochs count from 1. Randomness depends on seed and epoch alone, so a resumed run repeats no other's."""
        self._epoch = epoch
        self._done_rows = 0
        self._loss_sum = torch.zeros((), device=self._compute.device)
        torch.manual_seed(self._settings.seed * 1_000_003 + epoch)
        self.model.train()

    def train_on(self, rows: Rows, epoch_rows: float, advanced: Advanced = lambda rows, loss: None) -> None:
        """One pass over `rows`, shuffled. epoch_rows: how many the epoch will have in all; it sets the schedule.

        Raises: UnfitModel when the loss is not finite.
        """
        if not len(rows):
            return
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

    def _step(self, features: dict[str, Tensor], labels_B: Tensor, progress: float) -> None:
        self._optimizer.param_groups[0]["lr"] = self._settings.learning_rate * learning_rate_factor(progress)
        with self._compute.autocast():
            outputs = call(self.model, features)
        loss = self._application.objective.loss(outputs.float(), labels_B)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._loss_sum += loss.detach() * len(labels_B)

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
        self.model.eval()
        with torch.inference_mode():
            outputs = torch.cat(
                [
                    call(
                        self.model,
                        {
                            name: as_model_input(tensor[first : first + _EVALUATION_ROWS].to(self._compute.device))
                            for name, tensor in rows.features.items()
                        },
                    )
                    .float()
                    .cpu()
                    for first in range(0, len(rows), _EVALUATION_ROWS)
                ]
            )
        labels_N, found = rows.labels_N.numpy(), outputs.numpy()
        metrics = measured(self._application, labels_N, found)
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
            tensors |= {f"optimizer.{parameter}.{name}": tensor for name, tensor in moments.items()}
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
        parameters = list(self.model.parameters())
        try:
            self.model.load_state_dict(model)
            for index, of_parameter in moments.items():
                for moment, tensor in of_parameter.items():
                    if tensor.ndim:  # the fused optimiser walks memory: a moment must lie as its parameter does
                        of_parameter[moment] = torch.empty_like(parameters[index]).copy_(tensor)
            self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        except (RuntimeError, ValueError, IndexError) as exc:
            raise BadInput(f"the checkpoint does not fit {self._application.name}'s model: {exc}") from exc
