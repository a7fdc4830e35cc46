"""What the model runs on: the CPU cores that this process may use, or one of the machine's GPUs."""

import os
from pathlib import Path

import torch

from deeplambda.errors import ConfigurationError

_CGROUP = Path("/sys/fs/cgroup")


def chosen_device(setting: str) -> torch.device:
    """setting: `auto` (CUDA where there is one), `cpu`, `gpu` or `cuda` (the first), `cuda:N`.

    Raises: ConfigurationError when there is no such GPU.
    """
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda" if setting in {"auto", "gpu"} else setting)
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ConfigurationError(
            f"DEEPLAMBDA_DEVICE is {setting!r}, and PyTorch finds {count} GPUs", "set it to 'auto' or 'cpu'"
        )
    return device


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
