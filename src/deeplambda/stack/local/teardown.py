"""Take the stack down, in reverse order, and leave no process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil

from deeplambda.config import Settings
from deeplambda.stack.local.parts import PARTS, Part, stopping_waves
from deeplambda.stack.local.processes import end, processes_of
from deeplambda.stack.local.supervisor import Supervisor


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
