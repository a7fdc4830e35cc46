"""A disk that ran full, told from the failures that it makes: Spark, S3, MySQL and Python each say it otherwise."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from deeplambda.config import Settings
from deeplambda.errors import DiskFull

_SAID = re.compile(
    r"[^\n]*(?:No space left on device|Disk quota exceeded"
    r"|Could not find any valid local directory"  # Hadoop, before it writes a block of an upload
    r"|The table '\S+' is full)[^\n]*"  # InnoDB
)
_S3_FAILED = re.compile(r"[^\n]*(?:\(InternalError\)|InternalError:|Status Code: 500)[^\n]*")
"""All that S3Proxy says of its full disk."""
_LITTLE_BYTES = 256 * 2**20
"""More than the largest thing that is written at once."""
_FOLDERS = ("", "spark", "s3", "mysql", "kafka")
"""Of the data folder: each may be a disk of its own."""


def full_disk(error: BaseException, settings: Settings) -> DiskFull | None:
    """What to tell a person of a failure that a full disk is behind; None when none is."""
    folder, free_bytes = _fullest(settings.data_dir)
    little = free_bytes < _LITTLE_BYTES
    for cause in _chain(error):
        said = _SAID.search(_text(cause)) or (little and _S3_FAILED.search(_text(cause)))
        if said or (isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}):
            where = f", {free_bytes / 1e6:,.1f} MB are free at {folder}" if little else ""
            why = said[0] if said else str(cause)
            return DiskFull(
                f"no space is left on a disk{where} ({' '.join(why.split())[:200]})",
                "free some, or mount a larger disk there (the data folder is DEEPLAMBDA_DATA_DIR); then run it again",
            )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _text(error: BaseException) -> str:
    with suppress(Exception):  # Py4J's ask the JVM, which may have died of it
        return str(error)
    return ""


def _fullest(data_dir: Path) -> tuple[Path, int]:
    """The folder with the least space on its disk, and its free bytes."""
    there = [folder for name in _FOLDERS if (folder := data_dir / name).is_dir()]
    free = [(folder, shutil.disk_usage(folder).free) for folder in there]
    return min(free, key=lambda each: each[1], default=(data_dir, _LITTLE_BYTES))
