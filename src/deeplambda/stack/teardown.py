"""Take the stack down, in reverse order, and leave no process."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil

from deeplambda.config import Settings
from deeplambda.stack.parts import PARTS, Part, stopping_waves
from deeplambda.stack.supervisor import PART_MARK, Supervisor

_GRACE_S = 10


def take_down(settings: Settings, parts: list[Part], report: Callable[[Part], None]) -> list[psutil.Process]:
    """Stop `parts`; when these are all of them, supervisord too. Returns the processes that had to be killed."""
    supervisor = Supervisor(settings)
    running = {name for name, process in supervisor.processes().items() if process.state not in {"STOPPED", "EXITED"}}
    for wave in stopping_waves(part for part in parts if part.name in running):
        with ThreadPoolExecutor(max_workers=len(wave)) as pool:
            for part, _ in zip(wave, pool.map(supervisor.stop_part, [part.name for part in wave]), strict=True):
                report(part)
    if len(parts) == len(PARTS) and supervisor.is_up():
        supervisor.shut_down()
    return end(processes_of(settings, {part.name for part in parts}))


def processes_of(settings: Settings, names: Iterable[str]) -> list[psutil.Process]:
    """Every process that belongs to the parts named, however it came apart from its parent."""
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
