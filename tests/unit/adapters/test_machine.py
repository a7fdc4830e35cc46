"""A process uses the cores and the memory that it has, and the device that is asked for, or says that there is none."""

import os
from pathlib import Path

import psutil
import pytest
import torch

from deeplambda.adapters.machine import chosen_device, cpu_share, free_memory, lacks_memory
from deeplambda.errors import ConfigurationError

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
    write(tmp_path, files)
    assert cpu_share(tmp_path) == share


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{content}\n")


V1_MEMORY = {"memory/memory.usage_in_bytes": "700", "memory/memory.stat": "inactive_file 9\ntotal_inactive_file 50"}
V2_MEMORY = {"memory.current": "700", "memory.stat": "anon 600\ninactive_file 50"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"memory.max": "1000"} | V2_MEMORY, 350),
        ({"memory.max": "600"} | V2_MEMORY, 0),
        ({"memory/memory.limit_in_bytes": "1000"} | V1_MEMORY, 350),
    ],
)
def test_what_a_container_has_left_counts(tmp_path: Path, files: dict[str, str], free: int) -> None:
    write(tmp_path, files)
    assert free_memory(tmp_path) == free


@pytest.mark.parametrize("files", [{}, {"memory.max": "max"} | V2_MEMORY, {"memory.max": str(2**62)} | V2_MEMORY])
def test_without_a_limit_what_the_host_has_left_counts(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    assert 2**20 < free_memory(tmp_path) < psutil.virtual_memory().total


def test_without_a_gpu_auto_is_the_cpu_and_asking_for_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert chosen_device("auto") == chosen_device("cpu") == torch.device("cpu")
    for wanted in ("gpu", "cuda", "cuda:3"):
        with pytest.raises(ConfigurationError, match="0 GPUs"):
            chosen_device(wanted)


def test_want_of_memory_is_known_as_what_it_is_raised() -> None:
    with pytest.raises(RuntimeError) as of_cpu:
        torch.empty(10**15)
    of_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of …")
    of_cublas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert all(map(lacks_memory, (of_cpu.value, of_gpu, of_cublas, MemoryError())))
    others = (
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("mat1 and mat2 cannot be multiplied"),
    )
    assert not any(map(lacks_memory, (*others, ValueError("out of memory"))))
