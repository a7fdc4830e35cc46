"""Checks of the model, its loss, its metrics, and the artefacts that a version is kept as. Legend: N rows."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from deeplambda.application import Application
from deeplambda.errors import DeepLambdaError
from deeplambda.features import SINGLE, Features, as_taken, by_name, call, chosen, row_count
from deeplambda.metrics import check_metrics, measured
from deeplambda.state.card import TrainerHyperparameters
from deeplambda.state.onnx_export import exported
from deeplambda.state.weights import encoded_weights, load_weights
from deeplambda.testing.findings import Broken
from deeplambda.testing.labels import labels_for
from deeplambda.testing.work import Work, hyperparameters, tried_rows

HEART_ROWS, HEART_STEPS, HEART_S = 16, 150, 3.0
HEART_FRACTION = 0.7
"""Of the first loss: below it, a small batch counts as learned by heart."""
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4


def check_model(work: Work) -> str:
    """Forward, backward, alone as among others, a batch learned by heart with the hooks of training, metrics."""
    with _repeatable(seed=0):
        model = _built(work)
        labels = _labels(work)
        outputs = _outputs(work, model.eval())
        _check_shape(work, outputs)
        _check_inputs(work, model, outputs)
        _check_alone(work, model, outputs)
        _check_edges(work, model)
        _check_metrics(work, labels, outputs)
        fell = _check_learning_by_heart(work, labels)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{parameters:,} parameters, outputs {tuple(outputs.shape[1:])}; {fell}"


def check_artefacts(work: Work) -> str:
    """Weights and ONNX, written and read again, of a model that has seen a batch of training."""
    with _repeatable(seed=1):
        model, other = _built(work), _built(work)
        _forward(work, model.train(), chosen(work.features, _distinct(work.features)[:HEART_ROWS]), "a training batch")
        content = encoded_weights(model.eval())
        try:
            load_weights(other, content, work.application.name)
        except DeepLambdaError as exc:
            raise work.blame("artefacts", exc, "build_model") from exc
        if not _close(_outputs(work, model), _outputs(work, other.eval())):
            raise work.stop(
                "artefacts",
                "the model gives other outputs when its weights are loaded into a fresh one",
                "keep all that it computes with in parameters or buffers (register_buffer)",
                "build_model",
            )
        try:
            onnx = exported(model, work.features)
        except DeepLambdaError as exc:
            raise work.blame("artefacts", exc, "build_model") from exc
    return f"{len(content):,} bytes of safetensors, {len(onnx):,} bytes of ONNX"


def _built(work: Work) -> torch.nn.Module:
    arguments = hyperparameters(work.application)
    try:
        model = work.application.build_model(**arguments)
    except Exception as exc:  # a user's code
        remedy = "fix build_model"
        if isinstance(exc, TypeError) and "argument" in str(exc):
            remedy = f"let build_model take {', '.join(arguments) or 'no arguments'}, as hyperparameters have it"
        raise work.stop(
            "model", f"build_model raised {type(exc).__name__}: {_first(exc)}", remedy, "build_model"
        ) from exc
    if not isinstance(model, torch.nn.Module):
        raise work.stop("model", f"build_model gives {type(model).__name__}", "return a torch.nn.Module", "build_model")
    return model


def _labels(work: Work) -> NDArray[Any]:
    try:
        return work.application.objective.label_array(labels_for(work.application, tried_rows(work)))
    except Exception as exc:
        raise work.stop(
            "model", f"the objective refuses labels: {_first(exc)}", "correct the objective", "objective"
        ) from exc


def _tensors(features: Features) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in features.items()}


def _forward(work: Work, model: torch.nn.Module, features: Features, of: str) -> torch.Tensor:
    try:
        found: torch.Tensor = call(model, _tensors(features))
    except Exception as exc:  # a user's code
        given = ", ".join(f"{name!r} {array.dtype} {array.shape}" for name, array in features.items())
        raise work.stop(
            "model",
            f"the model fails on {of}, given {given}: {type(exc).__name__}: {_first(exc)}",
            _remedy(exc, features),
            "forward",
            "build_model",
        ) from exc
    return found


def _remedy(exc: Exception, features: Features) -> str:
    text = str(exc)
    if ("argument" in text and "unexpected" in text) or "missing" in text:
        names = "the features" if set(features) == {SINGLE} else ", ".join(features)
        return f"let forward take {names}, by the names that transform gives"
    if "more than 1 value per channel" in text:
        return "let BatchNorm keep track_running_stats, for a model serves events one by one as well"
    if "indices" in text or "Long" in text:
        return "an embedding takes whole numbers: let transform give them as int64, not float32"
    if "dtype" in text:
        return "let transform give float32 for what the model computes with"
    return "let build_model and transform agree on shapes and dtypes"


def _outputs(work: Work, model: torch.nn.Module) -> NDArray[np.float32]:
    with torch.inference_mode():
        found = _forward(work, model, work.features, "rows")
    if not isinstance(found, torch.Tensor):
        raise work.stop(
            "model", f"the model gives {type(found).__name__}", "return one tensor", "forward", "build_model"
        )
    outputs: NDArray[np.float32] = found.float().numpy()
    if not np.isfinite(outputs).all():
        raise work.stop(
            "model",
            "the untrained model gives NaN or infinite outputs",
            "look for logarithms and divisions",
            "build_model",
        )
    return outputs


def _check_shape(work: Work, outputs: NDArray[np.float32]) -> None:
    size, rows = work.application.objective.output_size, row_count(work.features)
    fits = outputs.shape == (rows, size) or (size == 1 and outputs.shape == (rows,))
    if not fits:
        raise work.stop(
            "model",
            f"the model gives outputs of shape {outputs.shape} for {rows} rows; the objective needs {(rows, size)}",
            f"let the last layer have {size} outputs",
            "build_model",
        )


def _check_inputs(work: Work, model: torch.nn.Module, outputs: NDArray[np.float32]) -> None:
    """Whether each tensor of the features changes the outputs when its rows are exchanged."""
    rows = row_count(work.features)
    for name, array in work.features.items() if len(work.features) > 1 else ():
        exchanged = np.roll(array, rows // 2 or 1, axis=0)
        if np.array_equal(exchanged, array):
            continue
        with torch.inference_mode():
            found = _forward(work, model, work.features | {name: exchanged}, "rows").float().numpy()
        if np.array_equal(found, outputs):
            work.find(
                "model",
                f"the model's outputs do not depend on the input {name!r}",
                f"use {name!r} in forward, or leave it out of transform",
                "forward",
                "build_model",
            )


def _check_alone(work: Work, model: torch.nn.Module, outputs: NDArray[np.float32]) -> None:
    for row in range(min(4, row_count(work.features))):
        with torch.inference_mode():
            found = _forward(work, model, chosen(work.features, [row]), "one row alone").float().numpy()
        if found.shape != outputs[[row]].shape or not _close(found, outputs[[row]]):
            work.find(
                "model",
                "the model gives an event other outputs alone than in a batch"
                + ("" if found.shape == outputs[[row]].shape else f": shape {found.shape}"),
                "let no row depend on another: batch norm needs track_running_stats, squeeze its dimension",
                "forward",
                "build_model",
            )
            return


def _check_edges(work: Work, model: torch.nn.Module) -> None:
    """The model on the features of each field's edges: an event that passes the schema should get its answer."""
    fields: set[str] = set()
    for name, value, features in work.edges:
        if name in fields:
            continue
        try:
            with torch.inference_mode():
                outputs = call(model, _tensors(features)).float()
            wrong = None if torch.isfinite(outputs).all() else "gives outputs that are not finite"
        except Exception as exc:  # a user's code
            wrong = f"raises {type(exc).__name__}: {_first(exc)}"
        if wrong:
            fields.add(name)
            work.find(
                "model",
                f"with {name}={value}, the model {wrong}",
                "bound the field in the schema, as Field(ge=0, lt=1000), or let transform bring it in range",
                "transform",
            )


def _check_metrics(work: Work, labels: NDArray[Any], outputs: NDArray[np.float32]) -> None:
    try:
        check_metrics(work.application)
        figures = measured(work.application, labels, outputs)
    except DeepLambdaError as exc:
        work.report.findings.append(work.blame("metrics", exc, "metrics").finding)
        return
    for name, figure in figures.items():
        if not math.isfinite(figure):
            work.find(
                "metrics",
                f"the metric {name!r} is {figure} on rows of the train split",
                "return a finite figure",
                "metrics",
            )


def _check_learning_by_heart(work: Work, labels: NDArray[Any]) -> str:
    """A model that is wired rightly learns a few rows by heart, whatever they are, with the application's own hooks."""
    given = dict(work.application.hyperparameters)
    try:
        settings = given | TrainerHyperparameters.model_validate({"seed": 0} | given).model_dump()
    except ValidationError:
        return "not trained, for its hyperparameters are to be corrected"
    rows = _distinct(work.features)[:HEART_ROWS]
    features, targets = _tensors(chosen(work.features, rows)), torch.tensor(labels[rows])
    _check_augment(work, features, targets)
    deadline_s = time.process_time() + HEART_S
    first = best = math.inf
    for learning_rate in (settings["learning_rate"], 1e-2, 1e-1):
        first, best = _fit_by_heart(work, features, targets, settings | {"learning_rate": learning_rate}, deadline_s)
        if best < HEART_FRACTION * first or len(rows) < 2:
            return f"{len(rows)} rows learned by heart: loss {first:.3g} to {best:.3g}"
    work.find(
        "model",
        f"the model does not learn {len(rows)} rows by heart: the loss goes from {first:.3g} to {best:.3g}",
        "look at what its forward does with the features, at the loss and at the optimizer",
        "build_model",
    )
    return ""


def _fit_by_heart(
    work: Work,
    features: dict[str, torch.Tensor],
    targets: torch.Tensor,
    settings: Mapping[str, Any],
    deadline_s: float,
) -> tuple[float, float]:
    """The first and the lowest loss. deadline_s: in time of the processor, which a busy machine does not shorten."""
    torch.manual_seed(0)
    model = _built(work).train()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise work.stop("model", "the model has no parameter to train", "let build_model give some", "build_model")
    optimizer = _optimizer(work, model, settings)
    first = best = math.inf
    for step in range(HEART_STEPS):
        loss = _loss(work, model, features, targets)
        value = loss.item()
        if not math.isfinite(value):
            if step == 0:
                raise _not_finite(work, f"the loss of a small batch is {value}")
            break
        first = value if step == 0 else first
        best = min(best, value)
        if best < HEART_FRACTION * first or (step > 5 and time.process_time() > deadline_s):
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        _step(work, model, optimizer, first=step == 0)
    return first, best


def _optimizer(work: Work, model: torch.nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """As the trainer makes it: of an iterator over all parameters, with all hyperparameters."""
    try:
        optimizer = work.application.optimizer(model.parameters(), settings)
    except Exception as exc:  # a user's code
        raise work.stop(
            "model",
            f"optimizer raised {type(exc).__name__}: {_first(exc)}",
            f"make it of the parameters, once, and of the hyperparameters, which are {', '.join(settings)}",
            "optimizer",
        ) from exc
    if not isinstance(optimizer, torch.optim.Optimizer) or not all("lr" in each for each in optimizer.param_groups):
        raise work.stop(
            "model",
            f"optimizer gives {type(optimizer).__name__}",
            "return a torch.optim.Optimizer, each of whose groups has a learning rate `lr`",
            "optimizer",
        )
    return optimizer


def _step(work: Work, model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, first: bool) -> None:
    """One step; the first has to be possible, and to change the model."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if first and not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise _not_finite(work, "the gradient of the loss is NaN or infinite")
    before = [parameter.detach().clone() for parameter in model.parameters()] if first else []
    try:
        optimizer.step()
    except Exception as exc:  # one that wants what the trainer does not give, as a closure
        raise work.stop(
            "model",
            f"a step of {type(optimizer).__name__} raised {type(exc).__name__}: {_first(exc)}",
            "return an optimizer whose step() takes no argument, such as AdamW or SGD",
            "optimizer",
        ) from exc
    moving = any(bool(gradient.any()) for gradient in gradients)
    if first and moving and all(map(torch.equal, before, model.parameters())):
        raise work.stop(
            "model",
            f"a step of {type(optimizer).__name__} changes nothing in the model",
            "make it of the parameters that optimizer is given, with a learning rate above 0",
            "optimizer",
        )


def _not_finite(work: Work, problem: str) -> Broken:
    return work.stop("model", problem, "look for logarithms, square roots and divisions in it", "loss", "objective")


def _check_augment(work: Work, features: dict[str, torch.Tensor], targets: torch.Tensor) -> None:
    """A training batch changed at random: as many rows of the same shape and dtype, on which the loss is finite."""
    if type(work.application).augment is Application.augment:
        return
    copies = {name: tensor.clone() for name, tensor in features.items()}
    try:
        given = work.application.augment(as_taken(copies))
    except Exception as exc:  # a user's code
        raise work.stop(
            "model",
            f"augment raised {type(exc).__name__}: {_first(exc)}",
            "let it take a batch of features, as tensors, and give a batch back",
            "augment",
        ) from exc
    found = by_name(given)
    wanted, told = ({name: _described(tensor) for name, tensor in each.items()} for each in (features, found))
    if wanted != told:
        raise work.stop(
            "model",
            f"augment gives {_pairs(told)} for {_pairs(wanted)}",
            "give the same tensors back, of the same shape and dtype",
            "augment",
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise work.stop("model", "augment gives NaN or infinite features", "keep them finite", "augment")
    loss = _loss(work, _built(work).train(), found, targets)
    if not math.isfinite(loss.item()):
        raise _not_finite(work, f"the loss of a batch that augment changed is {loss.item()}")


def _described(given: Any) -> str:
    if not isinstance(given, torch.Tensor):
        return type(given).__name__
    return f"{str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}"


def _pairs(told: Mapping[str, str]) -> str:
    return ", ".join(f"{name!r} {each}" for name, each in told.items())


def _loss(work: Work, model: torch.nn.Module, features: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """The loss of a training batch, from which gradients reach the model."""
    arrays = {name: tensor.numpy() for name, tensor in features.items()}
    outputs = _forward(work, model, arrays, "a training batch").float()
    try:
        loss = work.application.loss(outputs, targets, as_taken(features))
    except Exception as exc:  # a user's code
        raise work.stop(
            "model",
            f"the loss raised {type(exc).__name__}: {_first(exc)}",
            "let loss take the model's outputs, the labels and the features",
            "loss",
            "objective",
        ) from exc
    if not (isinstance(loss, torch.Tensor) and loss.ndim == 0):
        raise work.stop(
            "model", f"the loss is {_described(loss)}", "let loss return one number, as a tensor", "loss", "objective"
        )
    if not outputs.requires_grad:
        raise work.stop(
            "model", "no gradient reaches the model", "let forward detach nothing", "forward", "build_model"
        )
    if not loss.requires_grad:
        raise work.stop(
            "model",
            "the loss has no gradient, so nothing would be learned",
            "compute it from the outputs with torch's functions alone, without item(), detach() or argmax()",
            "loss",
            "objective",
        )
    return loss


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Own random numbers, and one thread: for so few rows, several wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _distinct(features: Features) -> list[int]:
    """Rows of which no two are equal: equal ones with different labels cannot be learned."""
    seen: dict[bytes, int] = {}
    for row in range(row_count(features)):
        seen.setdefault(b"".join(array[row].tobytes() for array in features.values()), row)
    return sorted(seen.values())


def _close(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return bool(np.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE))


def _first(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0][:300]
