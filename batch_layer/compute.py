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
from torch import Tensor, distributed, nn

from deeplambda.adapters.machine import chosen_device

_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True)
class Compute:
    """A device, the numbers of the forward pass, and which of the run's workers this process is.

    numbers: float32, or what autocast uses where it helps. Elsewhere a CPU emulates bf16 and is slower than in fp32.
    rank: from 0.
    """

    device: torch.device
    numbers: torch.dtype
    rank: int = 0
    workers: int = 1

    @property
    def name(self) -> str:
        """For cards and events: `cpu, bf16`, `NVIDIA H100, bf16` or `4 × NVIDIA H100, bf16`."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return (f"{self.workers} × " if self.workers > 1 else "") + f"{device}, {_SHORT[self.numbers]}"

    def autocast(self) -> AbstractContextManager[object]:
        """What the forward pass runs in."""
        if self.numbers is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.numbers)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps gradients of fp16 from vanishing; does nothing for other numbers, whose exponents reach far enough."""
        return torch.amp.GradScaler(self.device.type, enabled=self.numbers is torch.float16)

    def place(self, model: nn.Module) -> nn.Module:
        """`model` on the device, its convolutions in channels_last: oneDNN's and cuDNN's own layout."""
        for parameter in model.parameters():
            if parameter.dim() == 4:  # the only weights that have this layout
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return model.to(self.device)

    def room_bytes(self) -> int:
        """What rows may take of a GPU's memory: half of what is free. 0 on the CPU, where they are already."""
        return torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else 0


def best_compute(setting: str = "auto") -> Compute:
    """The device that `chosen_device` finds, but the CPU wherever there is no GPU: all parts of a stack have one
    setting. One of several workers where `torch.distributed` says so, each with a GPU of its own."""
    rank, workers = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    device = chosen_device(setting if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        index = int(os.environ["LOCAL_RANK"]) if workers > 1 else device.index or 0
        return Compute(torch.device("cuda", index), torch.bfloat16 if bf16 else torch.float16, rank, workers)
    capabilities = torch.cpu.get_capabilities()
    bf16 = any(capabilities.get(name, False) for name in _BF16_INSTRUCTIONS)
    return Compute(torch.device("cpu"), torch.bfloat16 if bf16 else torch.float32, rank, workers)


def channels_last_rows(features: Tensor) -> Tensor:
    """Images (N, C, H, W) kept as (N, H, W, C), so that `as_model_input` of any rows is channels_last at no cost."""
    return features.permute(0, 2, 3, 1).contiguous() if features.ndim == 4 else features


def as_model_input(rows: Tensor) -> Tensor:
    """(B, H, W, C) seen as (B, C, H, W); other shapes as they are."""
    return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows
