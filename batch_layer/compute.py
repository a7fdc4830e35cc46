"""Where and how a model is trained: device, numbers, memory layout.

Legend: N rows, B rows of a batch, C channels, H height, W width.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

# OpenMP's threads wait for one another by spinning. On cores that Spark and the broker share that makes a step five
# times slower; asleep they cost an idle machine 4 %. OpenMP reads this once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

_BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True)
class Compute:
    """A device, and bf16 autocast where it helps: elsewhere a CPU emulates bf16 and is slower than in fp32."""

    device: torch.device
    bf16: bool

    @property
    def name(self) -> str:
        """For cards and events: `cpu, bf16` or `NVIDIA H100, bf16`."""
        cuda = self.device.type == "cuda"
        return (torch.cuda.get_device_name(self.device) if cuda else "cpu") + (", bf16" if self.bf16 else ", fp32")

    def autocast(self) -> AbstractContextManager[object]:
        """What the forward pass runs in."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def place(self, model: nn.Module) -> nn.Module:
        """`model` on the device, its convolutions in channels_last: oneDNN's and cuDNN's own layout."""
        for parameter in model.parameters():
            if parameter.dim() == 4:  # the only weights that have this layout
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return model.to(self.device)

    def batch(self, rows: Tensor, chosen_B: Tensor) -> Tensor:
        """Those rows on the device; the copy to a GPU runs beside its work."""
        batch = rows.index_select(0, chosen_B)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        return batch


def best_compute() -> Compute:
    """CUDA where there is one, else the CPU."""
    if torch.cuda.is_available():
        return Compute(torch.device("cuda"), torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return Compute(torch.device("cpu"), any(capabilities.get(name, False) for name in _BF16_INSTRUCTIONS))


def channels_last_rows(features: Tensor) -> Tensor:
    """Images (N, C, H, W) kept as (N, H, W, C), so that `as_model_input` of any rows is channels_last at no cost."""
    return features.permute(0, 2, 3, 1).contiguous() if features.ndim == 4 else features


def as_model_input(rows: Tensor) -> Tensor:
    """(B, H, W, C) seen as (B, C, H, W); other shapes as they are."""
    return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows
