"""HTTP servers that a benchmark starts for itself, each a process on a free port of this machine."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import urllib3

_STARTED_WITHIN_S = 180.0
_STOPPED_WITHIN_S = 20.0


@contextlib.contextmanager
def served(
    arguments: Sequence[str], environment: Mapping[str, str], answers: Callable[[], bool], failure: str
) -> Iterator[None]:
    """A Python process that answers until the end of the block, and then none of its group is left.

    answers: whether it does; a server that cannot be reached yet may raise urllib3's errors. Raises: TimeoutError with
    `failure` as its message.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments], env=os.environ | environment, stdout=sys.stderr, start_new_session=True
    )
    try:
        deadline = time.monotonic() + _STARTED_WITHIN_S
        while not _answers(answers):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(failure)
            time.sleep(0.5)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_STOPPED_WITHIN_S)
        with contextlib.suppress(ProcessLookupError):  # its children may be there when it is not
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(answers: Callable[[], bool]) -> bool:
    try:
        return answers()
    except urllib3.exceptions.HTTPError:
        return False
