"""Private configuration files, lock files, and folders of one process."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_private(path: Path, text: str) -> Path:
    """Write `text` to `path`, readable by the owner alone from the first byte on; replaces in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two processes may write the same file.
    handle, written = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)  # else a crash of the machine may leave the new name with an empty file
        return Path(written).replace(path)
    except BaseException:
        Path(written).unlink(missing_ok=True)
        raise


@contextmanager
def only_one(lock: Path) -> Iterator[int]:
    """Hold `lock`, one process at a time; others wait. A process that ends releases it, even when it is killed.

    Yields the lock's file descriptor: a program that inherits it holds the lock too, until it ends.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def own_folder(parent: Path) -> Path:
    """For the temporary files of this process; those of processes that have ended are removed, even of killed ones.

    This process, or the program that it becomes, holds the folder's lock. In `parent` lie such folders alone.
    """
    with only_one(parent.with_suffix(".lock")):
        parent.mkdir(parents=True, exist_ok=True)
        for folder in parent.iterdir():
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            except BlockingIOError:
                pass  # one's that lives
            finally:
                os.close(descriptor)
        own = Path(tempfile.mkdtemp(dir=parent))
        descriptor = os.open(own, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.set_inheritable(descriptor, True)
    return own
