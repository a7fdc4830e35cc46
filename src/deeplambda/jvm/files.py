"""Files that parts are configured by, and files that keep processes out of each other's way."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_private(path: Path, text: str) -> Path:
    """Write `text` to `path`, readable by the owner alone from the first byte on; replaces in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(path.suffix + ".new")
    written.unlink(missing_ok=True)
    written.touch(mode=0o600)
    written.write_text(text)
    return written.replace(path)


@contextmanager
def only_one(lock: Path) -> Iterator[int]:
    """One process at a time; others wait. The lock falls with its process, so a killed one blocks nobody.

    Yields the lock's file descriptor: a program that inherits it holds the lock too, until it ends.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
