"""What of the machine this process may use: cores and memory within its container's limits, and GPUs."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from psutil import virtual_memory

from deeplambda.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")
_NO_MEMORY = re.compile(r"out of memory|(can't|not enough) (allocate )?memory|STATUS_ALLOC_FAILED")


def chosen_device(setting: str) -> "torch.device":
    """setting: `auto` (CUDA where there is one), `cpu`, `gpu` or `cuda` (the first), `cuda:N`. What runs there in fp32
    does so with all of its bits: a version is judged by the answers that it will give.

    Raises: ConfigurationError when there is no such GPU.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False  # which keeps ten of them, and convolutions use by default
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda" if setting in {"auto", "gpu"} else setting)
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ConfigurationError(
            f"DEEPLAMBDA_DEVICE is {setting!r}, and PyTorch finds {count} GPUs", "set it to 'auto' or 'cpu'"
        )
    return device


def lacks_memory(exc: BaseException) -> bool:
    """Whether it was raised for want of memory, the machine's or a GPU's. PyTorch has a class for that of a GPU, which
    a traced model loses; its allocator on the CPU, and CUDA's libraries, raise a RuntimeError that says so."""
    return isinstance(exc, MemoryError) or (isinstance(exc, RuntimeError) and bool(_NO_MEMORY.search(str(exc))))


def cpu_share(cgroup: Path = _CGROUP) -> int:
    """How many cores this process may use at a time: those it is bound to, within its container's quota; at least 1.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max), scheduler/sched-bwc.rst (version 1).
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return max(1, cores if quota is None else min(cores, int(quota)))


def _quota(cgroup: Path) -> float | None:
    try:
        if (limit := cgroup / "cpu.max").exists():
            quota, period = limit.read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if quota.strip() in {"max", "-1"} else int(quota) / int(period)
    except (OSError, ValueError):  # no such controller: no limit
        return None


def free_memory(cgroup: Path = _CGROUP) -> int:
    """How many bytes this process may still take: of what the host has, what its container's limit leaves.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (memory.max), cgroup-v1/memory.rst.
    """
    free, left = virtual_memory().available, _left(cgroup)
    return free if left is None else max(0, min(free, left))


def _left(cgroup: Path) -> int | None:
    names = ("memory.max", "memory.current", "memory.stat")
    if not (cgroup / names[0]).exists():
        names = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat")
    try:
        limit, used, stat = ((cgroup / name).read_text() for name in names)
        if limit.strip() == "max":
            return None
        figures = dict(line.split() for line in stat.splitlines())
        cache = figures.get("total_inactive_file") or figures["inactive_file"]  # which the kernel gives up for others
        return int(limit) - int(used) + int(cache)
    except (OSError, ValueError, KeyError):  # no such controller: no limit
        return None
