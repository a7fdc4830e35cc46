"""Isolation: rows are tried together, and halved until each that fails stands alone, so that it harms no other."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from deeplambda.errors import BadInput, TooManyRefused, kept

LIMIT_S = 60.0
"""How long the culprits of one batch are looked for before the batch as a whole fails, unless the caller says more."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Halved(Generic[T]):
    """pieces: in their order, the rows that passed together and what came of them. refused: by row, why."""

    pieces: list[tuple[slice, T]]
    refused: dict[int, BadInput]

    @property
    def rows(self) -> list[int]:
        """The rows that passed."""
        return [row for piece, _ in self.pieces for row in range(piece.start, piece.stop)]


def halved(attempt: Callable[[slice], T], rows: int, blamed: type[BadInput], *, within_s: float = LIMIT_S) -> Halved[T]:
    """Try rows 0 to `rows`; where `attempt` raises `blamed`, its halves, down to single rows. Other errors pass.

    Raises: TooManyRefused past `within_s`, which only slow failures or very many of them reach.
    """
    deadline = time.monotonic() + within_s
    pieces: list[tuple[slice, T]] = []
    refused: dict[int, BadInput] = {}
    waiting = [slice(0, rows)] if rows else []
    while waiting:
        piece = waiting.pop()
        try:
            pieces.append((piece, attempt(piece)))
        except blamed as exc:
            middle = (piece.start + piece.stop) // 2
            if middle == piece.start:
                refused[piece.start] = kept(exc)
            elif time.monotonic() > deadline:
                raise TooManyRefused(
                    f"too many of {rows} rows fail to be told apart: {exc.message}", exc.remedy
                ) from exc
            else:
                waiting += [slice(middle, piece.stop), slice(piece.start, middle)]  # the first half comes next
    return Halved(pieces=pieces, refused=refused)
