"""The quickest variant of a model that reproduces its outputs; chosen when a champion is loaded.

A model is tried as it is, with its weights in channels_last, and in bfloat16 (which recent CPUs multiply natively).
Of the variants whose outputs agree with those in fp32 the service uses the one that is quickest on this machine.

Bfloat16 keeps 8 bits of a number. Measured on the digits model and 10,000 test images its outputs differ from fp32 by
at most 0.7 % of the row's largest output, which changes 2 predictions. So it is used for classifiers alone, and a row
whose two largest outputs differ by less than `CLOSE_CALL` is scored again in fp32: then no prediction changes.

Legend: N rows, C outputs, … one row's shape.
"""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeplambda.errors import UnfitModel

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
_TRIAL_ROWS = 32  # twice that is the largest pass

# A request's features are a read-only view of its body, and no model writes to its input.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class FastPath:
    """A model ready for requests, safe to call from several threads.

    variant: name of the data type and memory layout. exact: the fp32 variant. rescores: whether close rows go to it.
    """

    variant: str
    forward: Forward
    exact: Forward
    rescores: bool

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw outputs (N, C) or (N,) of features (N, …)."""
        with torch.inference_mode():
            chunks = [self._outputs(chunk) for chunk in torch.split(torch.from_numpy(features), PASS_ROWS[-1])]
            outputs: NDArray[np.float32] = (chunks[0] if len(chunks) == 1 else torch.cat(chunks)).numpy()
        return outputs

    def _outputs(self, rows: Tensor) -> Tensor:
        outputs = _one_pass(self.forward, rows)
        if self.rescores:
            best_N2 = outputs.topk(2, dim=1).values
            close_N = best_N2[:, 0] - best_N2[:, 1] < CLOSE_CALL * outputs.abs().amax(dim=1)
            if close_N.any():
                outputs[close_N] = _one_pass(self.exact, rows[close_N])
        return outputs


def fast_path(model: nn.Module, feature_shape: Sequence[int], *, name: str, decides: bool) -> FastPath:
    """The quickest faithful variant of `model`, warmed up. decides: the prediction depends on the largest output alone.

    Raises: UnfitModel when the model gives outputs that are not finite, or no row of outputs for each row.
    """
    trial = torch.from_numpy(np.random.default_rng(0).standard_normal((_TRIAL_ROWS, *feature_shape)).astype(np.float32))
    with torch.inference_mode():
        expected = _expected(model, trial, name)
        decides = decides and expected.ndim == 2 and expected.shape[1] > 1
        variants: list[tuple[str, Forward, float]] = [("fp32", _as_is(model), EXACT)]
        variants.append(("fp32 channels_last", _converted(model, torch.float32), EXACT))
        if decides:
            variants.append(("bfloat16 channels_last", _converted(model, torch.bfloat16), ROUNDED))
        faithful = [
            (variant, forward) for variant, forward, limit in variants if _deviation(forward, trial, expected) <= limit
        ]
        variant, forward = _quickest(faithful, trial)
        exact = next(call for kind, call in reversed(faithful) if kind.startswith("fp32"))
        path = FastPath(variant=variant, forward=forward, exact=exact, rescores="bfloat16" in variant)
        _warm_up(path, trial)
    return path


def _one_pass(forward: Forward, rows: Tensor) -> Tensor:
    count = len(rows)
    passed = next(allowed for allowed in PASS_ROWS if allowed >= count)
    if passed == count:
        return forward(rows)
    filled = rows.new_zeros((passed, *rows.shape[1:]))
    filled[:count] = rows
    return forward(filled)[:count]


def _expected(model: nn.Module, trial: Tensor, name: str) -> Tensor:
    try:
        expected = model(trial)
    except (RuntimeError, ValueError, TypeError, IndexError) as exc:
        raise UnfitModel(
            f"{name} does not take features of its card's shape {list(trial.shape[1:])}: {exc}",
            "train and publish again",
        ) from exc
    if not (isinstance(expected, Tensor) and expected.ndim in (1, 2) and expected.shape[0] == len(trial)):
        shape = list(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        raise UnfitModel(f"{name} gives {shape} for {len(trial)} rows", "build a model that returns (N, C) or (N,)")
    if not torch.isfinite(expected).all():
        raise UnfitModel(f"{name} gives outputs that are not finite", "promote another version")
    return expected


def _as_is(model: nn.Module) -> Forward:
    return lambda rows: model(rows)


def _converted(model: nn.Module, dtype: torch.dtype) -> Forward:
    converted = copy.deepcopy(model)
    for parameter in converted.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    converted = converted.to(dtype)

    def forward(rows: Tensor) -> Tensor:
        layout = torch.channels_last if rows.dim() == 4 else torch.contiguous_format
        outputs: Tensor = converted(rows.to(dtype, memory_format=layout))
        return outputs.float()

    return forward


def _deviation(forward: Forward, trial: Tensor, expected: Tensor) -> float:
    try:
        outputs = forward(trial)
    except (RuntimeError, TypeError):  # a layer without a kernel for this type or layout: the variant is out
        return float("inf")
    if outputs.shape != expected.shape:
        return float("inf")
    rows = expected.reshape(len(expected), -1)
    difference = (outputs.reshape(rows.shape) - rows).abs().amax(dim=1)
    share = float((difference / rows.abs().amax(dim=1).clamp_min(1e-6)).max())
    return share if np.isfinite(share) else float("inf")


def _quickest(variants: list[tuple[str, Forward]], trial: Tensor) -> tuple[str, Forward]:
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


def _seconds(forward: Forward, trial: Tensor, repeats: int = 7) -> float:
    """Processor time of the best of several passes: other load on the machine can only make a pass slower."""
    seconds = []
    for _ in range(repeats):
        begun = time.thread_time()
        forward(trial)
        seconds.append(time.thread_time() - begun)
    return min(seconds)


def _warm_up(path: FastPath, trial: Tensor) -> None:
    rows = torch.cat([trial, trial])
    for count in PASS_ROWS:
        path.forward(rows[:count])
        if path.rescores:
            path.exact(rows[:count])
