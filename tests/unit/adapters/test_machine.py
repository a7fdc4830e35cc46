"""The service uses the cores that it has, and the device that is asked for, or says that there is none."""

import os
from pathlib import Path

import pytest
import torch

from deeplambda.errors import ConfigurationError
from speed_layer.model_service.devices import chosen_device, cpu_share

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({}, CORES),
        ({"cpu.max": "max 100000"}, CORES),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "100000000 100000"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_the_share_of_a_container_counts(tmp_path: Path, files: dict[str, str], share: int) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert cpu_share(tmp_path) == share


def test_without_a_gpu_auto_is_the_cpu_and_asking_for_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert chosen_device("auto") == chosen_device("cpu") == torch.device("cpu")
    for wanted in ("gpu", "cuda", "cuda:3"):
        with pytest.raises(ConfigurationError, match="0 GPUs"):
            chosen_device(wanted)
