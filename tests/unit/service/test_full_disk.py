"""A full disk is told from what failed, and other failures are not taken for one."""

import errno
from collections import namedtuple
from pathlib import Path

import pytest

from deeplambda.config import Settings
from deeplambda.errors import CorruptObject, NotReady
from deeplambda.service import full_disk as module
from deeplambda.service.full_disk import full_disk

_Usage = namedtuple("_Usage", "free")


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.fixture(params=[1_000, 10**12], ids=["nothing is left", "there is room again"])
def free_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: _Usage(request.param))
    return int(request.param)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        chained(
            CorruptObject("raw object a.csv cannot be read"),
            RuntimeError("java.io.IOException: No space left on device"),
        ),
        RuntimeError("job aborted\nCaused by: Could not find any valid local directory for s3ablock-0001-"),
        RuntimeError("(1114, \"The table 'outbox' is full\")"),
    ],
)
def test_a_full_disk_is_told_by_what_spark_mysql_or_the_system_says(
    error: Exception, free_bytes: int, tmp_path: Path
) -> None:
    told = full_disk(error, Settings(data_dir=tmp_path))
    assert told is not None
    assert told.retryable
    assert (str(tmp_path) in told.message) == (free_bytes < 10**6), "a folder with room is not blamed"


def test_an_s3_that_fails_is_full_only_where_little_is_left(free_bytes: int, tmp_path: Path) -> None:
    error = NotReady("S3 refused s3://deeplambda/a: An error occurred (InternalError) when calling PutObject")
    assert (full_disk(error, Settings(data_dir=tmp_path)) is not None) == (free_bytes < 10**6)


def test_other_failures_are_left_alone(free_bytes: int, tmp_path: Path) -> None:
    assert full_disk(ValueError("no such column"), Settings(data_dir=tmp_path)) is None
