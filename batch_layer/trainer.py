"""The trainer: a model, its optimiser and its schedule. It knows nothing of where rows come from.

Several workers train one model: each takes its rows of every batch, and `DistributedDataParallel` adds up their
gradients, so that the model is the one that a single worker would have trained, but for the order of sums. So is what
`SharedBatchNorms` normalises; dropout draws other numbers in each worker.
Source: Li et al., PyTorch Distributed: Experiences on Accelerating Data Parallel Training (2020).

Legend: N rows, B rows of a batch.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from batch_layer.batch_norms import SharedBatchNorms
from batch_layer.compute import Compute, as_model_input
from batch_layer.rows import Rows, Window, batches
from deeplambda.application import Application
from deeplambda.errors import BadInput, DeepLambdaError, UnfitModel
from deeplambda.features import as_taken, by_name, call, row_count
from deeplambda.metrics import measured_by_piece
from deeplambda.records.featurizer import said
from deeplambda.state.card import TrainerHyperparameters, model_arguments
from deeplambda.state.weights import begin_with

WARM_UP = 0.2
"""Share of the run during which the learning rate rises."""
_CHECK_EVERY = 16
_NEXT_WORKER = 7_919
"""Between the seeds of two workers, whose dropout must not be alike."""
EVALUATION_ROWS = 1000
"""Of a pass, at most; and no more than a batch of training has, for which there was memory."""
_JUDGED_ROWS = 2**16
"""Whose outputs are held at once, for metrics that add up: a shard may have millions."""

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


class Trainer:
    """One run's model on its way. hyperparameters: from `all_hyperparameters`. Equal seeds give equal runs."""

    def __init__(self, application: Application, hyperparameters: Mapping[str, Any], compute: Compute) -> None:
        self._application = copy.copy(application)  # its objective is replaced by one that knows the labels
        self._objective = application.objective
        self._settings = TrainerHyperparameters.model_validate(hyperparameters)
        self._compute = compute
        self._epoch = self._done_rows = 0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=compute.device)
        torch.set_flush_denormal(True)  # moments of weights that get no gradient decay into denormals: AdamW × 14
        torch.manual_seed(self._settings.seed)
        self._arguments = model_arguments(hyperparameters)
        self.model = self.fresh_model()
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
        self._scaler = compute.scaler()
        self._shared = (
            DistributedDataParallel(self.model, find_unused_parameters=True, gradient_as_bucket_view=True)
            if compute.workers > 1
            else None
        )
        self._norms = SharedBatchNorms(self.model) if self._shared else None
        self._spare: Rows | None = None

    def fresh_model(self) -> torch.nn.Module:
        """Another model like this run's, on the device, with weights that are drawn anew."""
        return self._compute.place(self._application.build_model(**self._arguments))

    def begin_with(self, weights: bytes, name: str, outputs: int) -> tuple[str, ...]:
        """Take a version's weights before the first epoch; the tensors that were not taken, for it has other `outputs`.

        Raises: BadInput when its model is another one.
        """
        return begin_with(self.model, weights, name, heads=(self._objective.output_size, outputs))

    def know_labels(self, statistics: Sequence[float]) -> None:
        """Tell the objective about the train split, if it asks. statistics: see `Objective.label_statistics`."""
        fitted_to = getattr(self._objective, "fitted_to", None)
        if fitted_to is not None and len(statistics):
            vars(self._application)["objective"] = fitted_to(statistics)  # of this copy alone, not of the class

    def train_epoch(
        self,
        epoch: int,
        windows: Iterable[Window],
        rows: Callable[[], float],
        advanced: Advanced = lambda rows, loss: None,
    ) -> None:
        """One pass over the windows, each shuffled. epoch: from 1; randomness depends on seed and epoch alone, so a
        resumed run repeats no other's. rows: how many the epoch will have in all, as far as is known; the schedule
        follows it.

        Raises: UnfitModel when the loss is not finite.
        """
        self._epoch = epoch
        self._done_rows = unreported = 0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._compute.device)
        seed = self._settings.seed * 1_000_003 + epoch
        torch.manual_seed(seed + self._compute.rank * _NEXT_WORKER)
        self.model.train()
        order = torch.Generator().manual_seed(seed)
        for step, batch in enumerate(batches(self._sparing(windows), self._settings.batch_size, order), start=1):
            self._step(batch, (epoch - 1 + min(self._done_rows / rows(), 1.0)) / self._settings.epochs)
            self._done_rows += len(batch)
            unreported += len(batch)
            if step % _CHECK_EVERY == 1:
                advanced(unreported, self.mean_loss())
                unreported = 0
        advanced(unreported, self.mean_loss())

    def _step(self, batch: Window, progress: float) -> None:
        factor = learning_rate_factor(progress)
        for group, top_rate in zip(self._optimizer.param_groups, self._top_rates, strict=True):
            group["lr"] = top_rate * factor
        rows = self._rows_here(batch)
        features = self._augmented(
            {name: as_model_input(tensor) for name, tensor in rows.features.items()}, len(rows.labels_N)
        )
        with self._compute.autocast():
            outputs = call(self._shared or self.model, features)
        with _own_code(self._application, "loss"):
            loss = self._application.loss(outputs.float(), rows.labels_N, as_taken(features))
            if not (isinstance(loss, Tensor) and loss.ndim == 0):
                raise BadInput("what it gives is not a scalar tensor")
        self._optimizer.zero_grad()
        # Workers' gradients are averaged: each counts as many rows of the batch as it has.
        share = len(batch.rows) * self._compute.workers / len(batch)
        weighed = self._scaler.scale(loss if self._shared is None else loss * share)
        weighed.backward()  # type: ignore[no-untyped-call]
        if self._settings.gradient_clip:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.gradient_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._loss_sum += loss.detach().double() * len(batch.rows)

    def _sparing(self, windows: Iterable[Window]) -> Iterator[Window]:
        """The same; of each window, one of several workers keeps a row for those batches that it has none of."""
        for window in windows:
            if self._shared is not None and len(window.rows):
                self._spare = window.rows.chosen(torch.zeros(1, dtype=torch.int64))
            yield window

    def _rows_here(self, batch: Window) -> Rows:
        """The batch's rows on the device. A worker that has none of a small batch takes one that counts nothing."""
        rows = batch.rows
        if self._norms is not None:
            self._norms.counts = len(rows) > 0
            if not len(rows):
                if self._spare is None:
                    raise BadInput(f"worker {self._compute.rank} has no rows", "train with fewer workers")
                rows = self._spare
        if self._compute.device.type == "cuda" and rows.labels_N.device.type == "cpu":
            rows = rows.pinned().to(self._compute.device)
        return rows

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
        """Mean loss of the epoch so far, over the rows of all workers; all of them have to ask for it at once.

        Raises: UnfitModel when it is not finite.
        """
        loss_sum = self._loss_sum
        if self._shared is not None:
            loss_sum = loss_sum.clone()
            distributed.all_reduce(loss_sum)
        loss = loss_sum.item() / max(self._done_rows, 1)
        if not math.isfinite(loss):
            raise UnfitModel(
                f"the loss became {loss} in epoch {self._epoch} of {self._application.name}",
                f"train with a smaller learning rate than {self._settings.learning_rate:g}: "
                f"--set learning_rate={self._settings.learning_rate / 10:g}",
            )
        return loss

    def evaluate(self, pieces: Iterable[Rows]) -> dict[str, float]:
        """The application's metrics, as `finite_metrics` has them."""
        return finite_metrics(self._application, self.model, pieces, self._compute.device, self._settings.batch_size)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on, on the CPU: `model.…`, `optimizer.<parameter>.…`, `scaler.0.…`."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for parameter, moments in self._optimizer.state_dict()["state"].items():
            for name, moment in moments.items():
                if moment is not None:  # SGD without momentum keeps a place for it
                    tensors[f"optimizer.{parameter}.{name}"] = torch.as_tensor(moment)
        for name, value in self._scaler.state_dict().items():
            tensors[f"scaler.0.{name}"] = torch.as_tensor(value)
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up where `state()` was called. Raises: BadInput when it is another model's."""
        moments: dict[int, dict[str, Tensor]] = {}
        model: dict[str, Tensor] = {}
        scaler: dict[str, Any] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            parameter, _, moment = name.partition(".")
            if kind == "model":
                model[name] = tensor
            elif kind == "scaler":
                scaler[moment] = tensor.item()
            else:
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
            if scaler and self._scaler.is_enabled():
                self._scaler.load_state_dict(scaler)
        except (RuntimeError, ValueError, IndexError) as exc:
            raise BadInput(f"the checkpoint does not fit {self._application.name}'s model: {exc}") from exc


def load_model_state(model: torch.nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Give a model of the application `name` the weights in a trainer's state. Raises: BadInput when it is another."""
    weights = {key.removeprefix("model."): tensor for key, tensor in state.items() if key.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as exc:
        raise BadInput(
            f"the trained model of {name} has other weights than one that is built anew: {exc}",
            "let build_model make all of them, and forward none",
        ) from exc


def finite_metrics(
    application: Application, model: torch.nn.Module, pieces: Iterable[Rows], device: torch.device, batch_size: int
) -> dict[str, float]:
    """The application's metrics of a model, in fp32 as it will serve. pieces: the rows, of which few are held at once.
    batch_size: that the model is trained with.

    Raises: UnfitModel when a metric is not finite, BadInput for one that these rows do not determine.
    """
    parts = (part for rows in pieces for part in rows.parts(_JUDGED_ROWS))
    answered = (
        (part.labels_N.numpy(), _finite(application, outputs_of(model, part, device, batch_size))) for part in parts
    )
    metrics = measured_by_piece(application, answered)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UnfitModel(f"{name} of {application.name} became {value}", "train with a smaller learning rate")
    return metrics


def _finite(application: Application, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same outputs. Raises: UnfitModel; a metric would take NaN for the first class."""
    if not np.isfinite(outputs).all():
        raise UnfitModel(
            f"outputs of {application.name} became NaN or infinite",
            "train with a smaller learning rate, and have the model answer for every value that the schema admits",
        )
    return outputs


def outputs_of(model: torch.nn.Module, rows: Rows, device: torch.device, batch_size: int) -> NDArray[np.float32]:
    """The outputs, (N, C) or (N,), in fp32. model: on `device`; left in evaluation mode. batch_size: that it was
    trained with."""
    model.eval()
    with torch.inference_mode():
        outputs: Tensor = torch.cat(
            [
                call(model, {name: as_model_input(tensor.to(device)) for name, tensor in part.features.items()})
                .float()
                .cpu()
                for part in rows.parts(min(batch_size, EVALUATION_ROWS))
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
