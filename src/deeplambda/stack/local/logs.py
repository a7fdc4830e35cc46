"""Reading the parts' logs."""

import time
from collections.abc import Iterator
from pathlib import Path

_TAIL_BYTES = 1 << 20
_LOOK_AGAIN_S = 0.3


def last_lines(log: Path, count: int) -> str:
    """The last `count` lines of a log, as far as they lie in its last MiB; empty when there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])


def follow(log: Path) -> Iterator[str]:
    """What is written to `log` from now on, across its rotations; never ends."""
    position = log.stat().st_size if log.exists() else 0
    while True:
        size = log.stat().st_size if log.exists() else 0
        if size < position:  # rotated
            position = 0
        if size > position:
            with log.open("rb") as file:
                file.seek(position)
                written = file.read()
            position += len(written)
            yield written.decode(errors="replace")
        else:
            time.sleep(_LOOK_AGAIN_S)
