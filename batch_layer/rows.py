"""Rows in memory, and how an epoch deals them out in batches.

Legend: N rows, B rows of a batch, … the shape of one row's features.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from batch_layer.compute import channels_last_rows
from deeplambda.features import Features

_ELSEWHERE = -1


@dataclass(frozen=True)
class Rows:
    """Rows in memory: features by name, as `channels_last_rows` keeps them, and labels (N,)."""

    features: dict[str, Tensor]
    labels_N: Tensor

    @classmethod
    def of(cls, features: Features, labels_N: NDArray[Any]) -> "Rows":
        """Of arrays (N, …), which are left to the rows: only those that nobody may write to are copied."""
        return cls({name: channels_last_rows(_owned(array)) for name, array in features.items()}, _owned(labels_N))

    @classmethod
    def joined(cls, pieces: "Iterable[Rows]", rows: int) -> "Rows":
        """The pieces in their order, `rows` rows in all. Pieces that are made as they are asked for are never all held
        beside the whole."""
        whole, filled = None, 0
        for piece in pieces:
            if len(piece) == rows:
                return piece
            if whole is None and len(piece):
                whole = piece._like(rows)
            if whole is not None:
                whole._put(filled, piece)
            filled += len(piece)
        return whole or cls({}, torch.zeros(0))

    def _like(self, rows: int) -> "Rows":
        return Rows(
            {name: tensor.new_empty((rows, *tensor.shape[1:])) for name, tensor in self.features.items()},
            self.labels_N.new_empty((rows, *self.labels_N.shape[1:])),
        )

    def _put(self, first: int, piece: "Rows") -> None:
        for name, tensor in piece.features.items():
            self.features[name][first : first + len(piece)] = tensor
        self.labels_N[first : first + len(piece)] = piece.labels_N

    def chosen(self, rows_B: Tensor) -> "Rows":
        """Some of the rows."""
        rows_B = rows_B.to(self.labels_N.device)
        return Rows(
            {name: tensor.index_select(0, rows_B) for name, tensor in self.features.items()},
            self.labels_N.index_select(0, rows_B),
        )

    def part(self, rows: slice) -> "Rows":
        """Some of the rows, which are not copied."""
        return Rows({name: tensor[rows] for name, tensor in self.features.items()}, self.labels_N[rows])

    def parts(self, rows: int) -> "Iterator[Rows]":
        """All of the rows, so many at a time, which are not copied."""
        return (self.part(slice(first, first + rows)) for first in range(0, len(self), rows))

    def to(self, device: torch.device) -> "Rows":
        """The rows on a device; a copy from pinned memory to a GPU runs beside its work."""
        return Rows(
            {name: tensor.to(device, non_blocking=True) for name, tensor in self.features.items()},
            self.labels_N.to(device, non_blocking=True),
        )

    def pinned(self) -> "Rows":
        """The rows in memory that a GPU copies from by itself."""
        return Rows({name: tensor.pin_memory() for name, tensor in self.features.items()}, self.labels_N.pin_memory())

    @property
    def size_bytes(self) -> int:
        """What the tensors take."""
        return sum(tensor.nbytes for tensor in (*self.features.values(), self.labels_N))

    def __len__(self) -> int:
        return len(self.labels_N)


def _owned(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@dataclass(frozen=True)
class Window:
    """Rows that are shuffled together, of which each worker of a run holds some.

    rows: this worker's. places_N: int32, for each row of the whole window its index in `rows`, or -1 where another
    worker has it. A batch is a window too.
    """

    rows: Rows
    places_N: Tensor

    @classmethod
    def whole(cls, rows: Rows) -> "Window":
        """One that this worker holds alone."""
        return cls(rows, torch.arange(len(rows), dtype=torch.int32))

    @classmethod
    def shared(cls, rows: Rows, shares: Iterable[tuple[int, slice | None]]) -> "Window":
        """shares: of each shard in turn its rows, and which of them are here; None: none."""
        places, filled = [], 0
        for count, here in shares:
            of_shard = torch.full((count,), _ELSEWHERE, dtype=torch.int32)
            if here is not None:
                own = len(range(count)[here])
                of_shard[here] = torch.arange(filled, filled + own, dtype=torch.int32)
                filled += own
            places.append(of_shard)
        return cls(rows, torch.cat(places) if places else torch.zeros(0, dtype=torch.int32))

    def chosen(self, rows_B: Tensor) -> "Window":
        """Some of the rows, copied as far as they are here."""
        places_B = self.places_N[rows_B]
        here_B = places_B != _ELSEWHERE
        own = self.rows.chosen(places_B[here_B])
        places_B[here_B] = torch.arange(len(own), dtype=torch.int32)
        return Window(own, places_B)

    def followed_by(self, other: "Window") -> "Window":
        """The rows of both."""
        places_M = other.places_N + torch.where(other.places_N == _ELSEWHERE, 0, len(self.rows))
        rows = Rows.joined((self.rows, other.rows), len(self.rows) + len(other.rows))
        return Window(rows, torch.cat((self.places_N, places_M.to(torch.int32))))

    def __len__(self) -> int:
        return len(self.places_N)


def batches(windows: Iterable[Window], size: int, order: torch.Generator) -> Iterator[Window]:
    """Batches of `size` rows: each window is shuffled, and what it leaves goes into the next one's first batch.

    The last batch is filled up with rows of the first. Where there are fewer than `size`, all of them are one batch.
    order: draws the order; workers that draw alike make the same batches, and hold parts of each.
    """
    left: Window | None = None
    first: Window | None = None
    for window in windows:
        shuffled_N = torch.randperm(len(window), generator=order, dtype=torch.int32)
        begin = 0
        while begin < len(window):
            end = begin + size - (len(left) if left else 0)
            batch = window.chosen(shuffled_N[begin:end])
            batch, left, begin = (left.followed_by(batch) if left else batch), None, end
            if len(batch) < size:
                left = batch
            else:
                first = first or batch
                yield batch
    if left:
        yield left if first is None else left.followed_by(first.chosen(torch.arange(size - len(left))))
