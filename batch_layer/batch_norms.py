"""Batch normalisation over the rows of all workers: mean and variance are the whole batch's, as for one worker.

PyTorch's own `SyncBatchNorm` is for GPUs alone, and has no rows that count nothing.
Source: Ioffe and Szegedy, Batch Normalization (2015).

Legend: B rows of a batch that are here, C channels, … what else a row has.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SharedBatchNorms:
    """The batch normalisation of a model, while it is trained by several workers; all of them run its layers at once.

    counts: whether the rows of the next pass do. A layer whose forward is a user's own stays as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.counts = True
        for layer in model.modules():
            if isinstance(layer, _BatchNorm) and type(layer).forward is _BatchNorm.forward:
                layer.forward = partial(self._forward, layer)  # type: ignore[method-assign]

    def _forward(self, layer: _BatchNorm, rows: Tensor) -> Tensor:
        """rows: (B, C, …)."""
        if not layer.training:
            found: Tensor = type(layer).forward(layer, rows)
            return found
        layer._check_input_dim(rows)  # type: ignore[no-untyped-call]
        wide, weight = rows.to(torch.promote_types(rows.dtype, torch.float32)), float(self.counts)
        shape = [1, -1] + [1] * (rows.ndim - 2)
        of_channel = [dimension for dimension in range(rows.ndim) if dimension != 1]
        count = wide.new_tensor([weight * rows.numel() / rows.shape[1]])
        sums: Tensor = _Total.apply(torch.cat([weight * wide.sum(of_channel), count]))
        count = sums[-1].detach()
        mean_C = sums[:-1] / count
        centred = wide - mean_C.view(shape)
        variance_C: Tensor = _Total.apply(weight * centred.square().sum(of_channel)) / count
        _follow(layer, mean_C.detach(), variance_C.detach() * count / (count - 1).clamp_min(1))
        normal = centred * (variance_C + layer.eps).rsqrt().view(shape)
        if layer.affine:
            normal = normal * layer.weight.view(shape) + layer.bias.view(shape)
        return normal.to(rows.dtype)


class _Total(torch.autograd.Function):
    """The sum over all workers, each of which has a share in every one's loss: so gradients are added up too."""

    @staticmethod
    def forward(_: Any, part: Tensor) -> Tensor:
        total = part.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _Total.forward(_, gradient.contiguous())


def _follow(layer: _BatchNorm, mean_C: Tensor, variance_C: Tensor) -> None:
    """Have the layer's running statistics follow those of a batch."""
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return
    layer.num_batches_tracked.add_(1)
    share = 1 / layer.num_batches_tracked.item() if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean_C.to(layer.running_mean.dtype), share)
    layer.running_var.lerp_(variance_C.to(layer.running_var.dtype), share)
