"""Finding the rows to blame: a batch halved again and again until each row that fails stands alone.

Legend: N rows.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from deeplambda.errors import BadInput, NotReady

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Bisected(Generic[T]):
    """pieces: rows that went well together, in their order, and what came of them. refused: by position, why."""

    pieces: list[tuple[slice, T]] = field(default_factory=list)
    refused: dict[int, BadInput] = field(default_factory=dict)


def bisect(attempt: Callable[[slice], T], rows: int, *, limit_s: float = float("inf")) -> Bisected[T]:
    """Call `attempt` on all rows, and where it raises BadInput on each half of them, down to single rows.

    Raises: NotReady when culprits are still looked for after `limit_s`; whatever else `attempt` raises.
    """
    deadline = time.monotonic() + limit_s
    found: Bisected[T] = Bisected()

    def halve(first: int, count: int) -> None:
        try:
            found.pieces.append((slice(first, first + count), attempt(slice(first, first + count))))
        except BadInput as exc:
            if count == 1:
                found.refused[first] = exc
                return
            if time.monotonic() > deadline:
                raise NotReady(f"too many events fail to find each of them in time: {exc.message}", exc.remedy) from exc
            half = count // 2
            halve(first, half)
            halve(first + half, count - half)

    if rows:
        halve(0, rows)
    return found
