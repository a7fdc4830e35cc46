"""The quickest variant of a model that reproduces its outputs; chosen when a champion is loaded.

A model is tried as it is, with its weights in channels_last, and in bfloat16 (which recent CPUs multiply natively).
Of the variants whose outputs agree with those in fp32 the service uses the one that is quickest on this machine. They
are tried whenever a version is loaded, so on another machine another one may be chosen. With a GPU the variants run
there; should none of them agree, the model runs on the CPU.

Bfloat16 keeps 8 bits of a number. Measured on the digits model and 10,000 test images its outputs differ from fp32 by
at most 0.7 % of the row's largest output, which changes 2 predictions. So it is used for classifiers alone, and a row
whose two largest outputs differ by less than `CLOSE_CALL` is scored again in fp32: then no prediction changes.

Each variant is traced where that can be done: then a pass is one call, which does not hold Python's lock. Called layer
by layer it waits for that lock at each, and beside the loop that serves requests takes many times as long. Measured on
digits, 32 rows, beside a thread of Python that never rests: 48 ms, traced 12; with nothing beside it 3.8 and 3.7 ms.
So conversions belong to the trace, and what is done to rows and outputs beside it NumPy does, which keeps the lock.

PyTorch keeps a trace's graphs, not its weights, until the process ends (github.com/pytorch/pytorch/issues/35600).
`torch._C._jit_clear_class_registry` drops them, those of models that still serve as well, whose next pass crashes.

Legend: N rows, C outputs, … one row's shape.
"""

import copy
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from deeplambda.adapters.machine import lacks_memory
from deeplambda.errors import UnfitModel
from deeplambda.features import Features, call, chosen, row_count

EXACT = 1e-4
"""Largest deviation of an fp32 variant, as a share of the row's largest output."""
ROUNDED = 2**-5
"""The same for bfloat16, on random features."""
CLOSE_CALL = 2 * ROUNDED
"""Difference of a row's two largest outputs, as a share of the largest, below which the row is scored in fp32: if each
deviates by `ROUNDED`, their order could change."""
MIN_SPEEDUP = 1.2
"""A variant replaces the best one before it only if that one takes more than this many times as long."""
PASS_ROWS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
"""The numbers of rows that a pass may have; another number is padded to the next of them. oneDNN makes a plan for each,
which takes 2 MiB and the time of several passes. Larger passes are no quicker per row: they exceed the cache."""
LONGEST_PASS_S = 0.05
"""A pass has no more rows than take this long: other requests and applications wait for it."""
_AS_QUICK = 1.05  # a smaller pass is better if its rows take at most so many times as long
_CPU = torch.device("cpu")
_log = logging.getLogger(__name__)
_TRIAL_ROWS = 32  # twice that is the largest pass
_tracing = threading.Lock()  # warnings are caught for the whole process, and each application loads in its own thread

# A request's features are a read-only view of its body, and no model writes to its input.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

Tensors = dict[str, Tensor]
Forward = Callable[[Tensors], Tensor]


@dataclass(frozen=True, kw_only=True)
class FastPath:
    """A model ready for requests, safe to call from several threads.

    variant: name of the data type and memory layout. exact: the fp32 variant. rescores: whether close rows go to it.
    best_rows: of how many rows a pass takes the least time for each.
    """

    variant: str
    forward: Forward
    exact: Forward
    rescores: bool
    best_rows: int = PASS_ROWS[-1]

    def __call__(self, features: Features) -> NDArray[np.float32]:
        """Raw outputs (N, C) or (N,) of features by name, (N, …) each."""
        return self._passes(features, self._outputs)

    def exactly(self, features: Features) -> NDArray[np.float32]:
        """The same in fp32 throughout."""
        return self._passes(features, lambda rows: _one_pass(self.exact, rows))

    def _passes(self, features: Features, outputs_of: Callable[[Features], NDArray[np.float32]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            chunks = [
                outputs_of(chosen(features, slice(first, first + PASS_ROWS[-1])))
                for first in range(0, row_count(features), PASS_ROWS[-1])
            ]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def _outputs(self, rows: Features) -> NDArray[np.float32]:
        outputs = _one_pass(self.forward, rows)
        if self.rescores:
            second_N, best_N = np.partition(outputs, (-2, -1), axis=1)[:, -2:].T
            with np.errstate(invalid="ignore"):  # of infinities: who asked hears of them later
                close_N = best_N - second_N < CLOSE_CALL * np.abs(outputs).max(axis=1)
            if close_N.any():
                outputs[close_N] = _one_pass(self.exact, chosen(rows, close_N))
        return outputs


def fast_path(model: nn.Module, kept: Features, *, name: str, decides: bool, device: torch.device = _CPU) -> FastPath:
    """The quickest faithful variant of `model` on a device, warmed up.

    kept: features of real rows, which the variants are tried on. decides: only the largest of the outputs matters.
    Raises: UnfitModel when the model gives outputs that are not finite, or no row of outputs for each row; what
    `lacks_memory` knows.
    """
    rows = [row % row_count(kept) for row in range(_TRIAL_ROWS)]
    trial = {key: torch.from_numpy(array) for key, array in chosen(kept, rows).items()}
    with torch.inference_mode():
        expected = _expected(model, trial, name)
        decides = decides and expected.ndim == 2 and expected.shape[1] > 1
        variants: list[tuple[str, Forward, float]] = [("fp32", _as_is(model, trial), EXACT)]
        on = "" if device.type == "cpu" else f" on {device}"
        variants.append((f"fp32 channels_last{on}", _converted(model, trial, torch.float32, device), EXACT))
        if decides and any(tensor.is_floating_point() for tensor in trial.values()):
            variants.append((f"bfloat16 channels_last{on}", _converted(model, trial, torch.bfloat16, device), ROUNDED))
        faithful = []
        for variant, forward, limit in variants:
            if wrong := _wrong(forward, trial, expected, limit):
                _log.log(logging.WARNING if on else logging.INFO, "%s is not served in %s: %s", name, variant, wrong)
            else:
                faithful.append((variant, forward))
        variant, forward = _quickest(faithful, trial)
        exact = next(call for kind, call in reversed(faithful) if kind.startswith("fp32"))
        path = FastPath(variant=variant, forward=forward, exact=exact, rescores="bfloat16" in variant)
        return replace(path, best_rows=_warm_up(path, trial))


def _one_pass(forward: Forward, rows: Features) -> NDArray[np.float32]:
    count = row_count(rows)
    passed = next(allowed for allowed in PASS_ROWS if allowed >= count)
    if passed > count:
        rows = chosen(rows, [*range(count), *[0] * (passed - count)])  # the first again: a model may not take zeros
    outputs: NDArray[np.float32] = forward({name: torch.from_numpy(array) for name, array in rows.items()}).numpy()
    return outputs[:count]


def _expected(model: nn.Module, trial: Tensors, name: str) -> Tensor:
    count = row_count(trial)
    try:
        expected = call(model, trial)
    except Exception as exc:  # a user's model may raise anything
        if lacks_memory(exc):
            raise
        tensors = {key: list(tensor.shape[1:]) for key, tensor in trial.items()}
        raise UnfitModel(
            f"{name} does not take features of its card's shape {tensors}: {type(exc).__name__}: {exc}",
            "train and publish again",
        ) from exc
    if not (isinstance(expected, Tensor) and expected.ndim in (1, 2) and expected.shape[0] == count):
        shape = list(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        raise UnfitModel(f"{name} gives {shape} for {count} rows", "build a model that returns (N, C) or (N,)")
    if not torch.isfinite(expected).all():
        raise UnfitModel(f"{name} gives outputs that are not finite", "promote another version")
    return expected


class _Converted(nn.Module):
    """A model whose conversions are part of the call: tensors as the contract has them, in `names`' order, to fp32."""

    def __init__(self, model: nn.Module, names: Iterable[str], cast: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.names, self._cast = model, tuple(names), cast

    def forward(self, *tensors: Tensor) -> Tensor:
        given = {name: self._cast(tensor) for name, tensor in zip(self.names, tensors, strict=True)}
        outputs: Tensor = call(self.model, given).float()
        return outputs


def _as_is(model: nn.Module, trial: Tensors) -> Forward:
    return _traced(_Converted(model, trial, lambda tensor: tensor), trial)


def _converted(model: nn.Module, trial: Tensors, dtype: torch.dtype, device: torch.device) -> Forward:
    """Each thread has a stream of its own on a GPU, and copies from pinned memory, so that the copies of one pass
    overlap with the layers of another."""
    converted = copy.deepcopy(model)
    for parameter in converted.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    streams = threading.local()

    def on_own_stream() -> AbstractContextManager[Any]:
        if not hasattr(streams, "own"):
            streams.own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(streams.own)

    def cast(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor  # ids and masks: rounded, they would be others
        return tensor.to(dtype, memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format)

    def on_device(rows: Tensors) -> Tensors:
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in rows.items()}

    module = _Converted(converted.to(device, dtype), trial, cast)
    if device.type != "cuda":
        return _traced(module, trial)
    traced = _traced(module, on_device(trial))

    def forward(rows: Tensors) -> Tensor:
        with on_own_stream():
            return traced(on_device(rows)).cpu()

    return forward


def _traced(model: _Converted, trial: Tensors) -> Forward:
    """The model as one call, or as it is where a trace would be another model: one that decides by values or by the
    number of rows, which PyTorch warns of or one row alone shows, or one that cannot be traced at all."""

    def with_rows(run: Callable[..., Tensor], rows: Tensors) -> Tensor:
        return run(*[rows[name] for name in model.names])

    as_it_is = partial(with_rows, model)

    def run(rows: Tensors) -> Tensor:
        try:
            return with_rows(traced, rows)
        except RuntimeError:  # the model itself says in its own words what it does not take
            return as_it_is(rows)

    with _tracing, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            traced: Callable[..., Tensor] = torch.jit.trace(  # type: ignore[no-untyped-call]
                model, tuple(trial.values()), check_trace=False
            )
            one = {name: tensor[:1] for name, tensor in trial.items()}
            faithful = _deviation(partial(with_rows, traced), one, as_it_is(one)) <= EXACT
        except Exception as exc:  # whatever a user's model does that tracing does not know
            if lacks_memory(exc):
                raise
            return as_it_is
    return run if faithful and not any(issubclass(each.category, TracerWarning) for each in warned) else as_it_is


def _wrong(forward: Forward, trial: Tensors, expected: Tensor, limit: float) -> str:
    """Why a variant is out; nothing where it is not."""
    try:
        deviation = _deviation(forward, trial, expected)
    except Exception as exc:  # a layer without a kernel for this type or layout
        if lacks_memory(exc):
            raise
        return f"{type(exc).__name__}: {exc}"
    return "" if deviation <= limit else f"its outputs differ by {deviation:.2g} of a row's largest, not {limit:.2g}"


def _deviation(forward: Forward, trial: Tensors, expected: Tensor) -> float:
    outputs = forward(trial)
    if outputs.shape != expected.shape:
        return float("inf")
    rows = expected.reshape(len(expected), -1)
    difference = (outputs.reshape(rows.shape) - rows).abs().amax(dim=1)
    share = float((difference / rows.abs().amax(dim=1).clamp_min(1e-6)).max())
    return share if np.isfinite(share) else float("inf")


def _quickest(variants: list[tuple[str, Forward]], trial: Tensors) -> tuple[str, Forward]:
    """The quickest variant; a later one replaces an earlier one only if that one takes `MIN_SPEEDUP` times as long.

    The margin is above the noise of the measurement, so that every start chooses the same variant.
    """
    best, *others = variants
    best_s = _seconds(best[1], trial)
    for variant in others:
        seconds = _seconds(variant[1], trial)
        if seconds * MIN_SPEEDUP < best_s:
            best, best_s = variant, seconds
    return best


def _seconds(forward: Forward, trial: Tensors, repeats: int = 7) -> float:
    """Time of the best of several passes: other load on the machine can only make one slower. With a GPU it is what
    passes, else what this thread spends."""
    clock = time.perf_counter if torch.cuda.is_available() else time.thread_time
    seconds = []
    for _ in range(repeats):
        begun = clock()
        forward(trial)
        seconds.append(clock() - begun)
    return min(seconds)


def _warm_up(path: FastPath, trial: Tensors) -> int:
    """Have oneDNN make its plans; the best number of rows for a pass."""
    row_s = {}
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in trial.items()}
    for count in PASS_ROWS:
        rows = {name: tensor[:count] for name, tensor in twice.items()}
        path.forward(rows)
        if path.rescores:
            path.exact(rows)
        pass_s = _seconds(path.forward, rows, repeats=3)
        if count == 1 or pass_s <= LONGEST_PASS_S:
            row_s[count] = pass_s / count
    return next(count for count, each_s in row_s.items() if each_s <= _AS_QUICK * min(row_s.values()))
