"""Finding the stack's processes, orphans too, and ending them."""

from collections.abc import Iterable
from contextlib import suppress

import psutil

from deeplambda.config import Settings

PART_MARK = "DEEPLAMBDA_PART"
"""In the environment of every process of the stack, so that none is overlooked when the stack goes down."""

_GRACE_S = 10


def processes_of(settings: Settings, names: Iterable[str]) -> list[psutil.Process]:
    """Every process that belongs to the parts named, orphans too."""
    wanted, data_dir = set(names), str(settings.data_dir)
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.AccessDenied, psutil.NoSuchProcess):  # not ours, or gone
            continue
        if environment.get(PART_MARK) in wanted and environment.get("DEEPLAMBDA_DATA_DIR") == data_dir:
            found.append(process)
    return found


def end(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Ask processes to end, and kill those that do not; returns the killed."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_GRACE_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_GRACE_S)
    return alive
