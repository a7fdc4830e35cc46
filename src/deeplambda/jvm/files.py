"""Private configuration files, and lock files."""

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
    """Hold `lock`, one process at a time; others wait. A process that ends releases it, even when it is killed.

    Yields the lock's file descriptor: a program that inherits it holds the lock too, until it ends.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
