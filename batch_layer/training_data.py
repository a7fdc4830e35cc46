"""A prepared data set as a training run reads it, epoch after epoch.

1. While the data set is still being prepared, the first epoch trains on each shard as it is announced.
2. A data set that fits the trainer's memory (`DEEPLAMBDA_TRAINER_MEMORY_MB`) stays there, on the GPU where it has room:
   its train split is one window, so every row may meet every other in a batch.
3. A larger one is read from S3 in every epoch, its shards in an order that follows from seed and epoch, in windows of
   half that memory; the next window is fetched while one is trained on.
Each of several workers holds an equal share of every window: whole shards, and a part of those that are left over.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from typing import Any, TypeVar

from batch_layer.compute import Compute
from batch_layer.feed import Shard, ShardFeed, fetch_shard
from batch_layer.rows import Rows, Window
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.features import Tensor as FeatureTensor
from deeplambda.features import listed, specification
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.sources import split_names
from deeplambda.splits import TRAIN

_READ_AHEAD = 2
"""Shards that are fetched beside the one that is taken."""
Item = TypeVar("Item")
Found = TypeVar("Found")


class TrainingData:
    """features: what its rows have, once some have been read. label_statistics: their sum over all shards of the train
    split that are known; see `Objective`."""

    def __init__(
        self,
        settings: Settings,
        application: Application,
        dataset: str,
        compute: Compute,
        *,
        seed: int,
        preparing: "Future[Any] | None" = None,
    ) -> None:
        self.features: dict[str, FeatureTensor] = {}
        self._name = f"data set {dataset} of {application.name}"
        self._store = ObjectStore(settings)
        self._compute = compute
        self._seed = seed
        self._memory_bytes = settings.trainer_memory_mb * 2**20
        self._splits = split_names(application.sources, application.splits)
        self._shards: dict[str, list[PartitionPrepared]] = {split: [] for split in self._splits}
        self.label_statistics: list[float] = []
        self._rows_known = 0
        self._kept: dict[str, Rows] = {}
        self._window: Window | None = None
        self._feed = ShardFeed(settings, application, dataset, preparing=preparing)
        self._known = self._fits = False
        if self._feed.prepared():
            self._know(self._feed.listed())

    @property
    def train_rows(self) -> float:
        """Of an epoch; while the data set is still being prepared, as many as its shards so far let expect."""
        shards = self._shards[TRAIN]
        return self._rows_known if self._known or not shards else self._rows_known / len(shards) * shards[0].partitions

    def epoch(self, number: int) -> Iterator[Window]:
        """The windows of an epoch of the train split. number: from 1. Raises: BadInput, CorruptObject, NotReady."""
        if not self._known:
            yield from self._arriving()
        elif self._fits:
            self._window = self._window or self._resident()
            yield self._window
        else:
            yield from _ahead(self._read, self._windows(number), 1)

    def split(self, name: str) -> Iterator[Rows]:
        """A split's rows, piece by piece. Raises: as `epoch`."""
        for shard, rows in zip(self._shards[name], self._fetched(self._shards[name]), strict=True):
            if self._fits:
                self._kept[shard.key] = rows
            yield rows

    def wait(self) -> None:
        """Until the data set is wholly prepared. Raises: as `epoch`."""
        if not self._known:
            for _ in self._arriving():
                pass

    def _arriving(self) -> Iterator[Window]:
        arrived: list[PartitionPrepared] = []
        arrived_bytes = 0
        with closing(iter(self._feed)) as shards:
            for shard in shards:
                announcement = shard.announcement
                rows = self._checked(shard)
                arrived.append(announcement)
                arrived_bytes += announcement.size_bytes
                if arrived_bytes <= self._memory_bytes:
                    self._kept[announcement.key] = rows
                else:
                    self._kept.clear()
                if announcement.split == TRAIN:
                    self._shards[TRAIN].append(announcement)
                    self._count([announcement])
                    yield Window.whole(rows)
        self._know(arrived)

    def _know(self, announcements: Iterable[PartitionPrepared]) -> None:
        shards = sorted(announcements, key=lambda shard: (shard.split, shard.partition))
        self._fits = sum(shard.size_bytes for shard in shards) <= self._memory_bytes
        for split in self._splits:
            self._shards[split] = [shard for shard in shards if shard.split == split]
            if not any(shard.rows for shard in self._shards[split]):
                raise BadInput(
                    f"{self._name} has no rows in the split {split!r}",
                    "see what was ingested and what is in quarantine: 'deeplambda batch ingest'",
                )
        self.label_statistics, self._rows_known = [], 0
        self._count(self._shards[TRAIN])
        self._known = True

    def _count(self, shards: Iterable[PartitionPrepared]) -> None:
        """Add train shards to what is known of all."""
        for shard in shards:
            self._rows_known += shard.rows
            before = self.label_statistics or [0.0] * len(shard.label_statistics)
            self.label_statistics = [sum(column) for column in zip(before, shard.label_statistics, strict=True)]

    def _resident(self) -> Window:
        window = self._read(self._shards[TRAIN])
        if window.rows.size_bytes <= self._compute.room_bytes():
            window = Window(window.rows.to(self._compute.device), window.places_N)
        return window

    def _windows(self, epoch: int) -> Iterator[list[PartitionPrepared]]:
        shards = self._shards[TRAIN].copy()
        random.Random(f"{self._seed}/{epoch}").shuffle(shards)  # noqa: S311  # an order, not a secret
        before = 0

        def number(shard: PartitionPrepared) -> int:
            nonlocal before
            before += shard.size_bytes
            return before // (self._memory_bytes // 2)

        return (list(window) for _, window in groupby(shards, number))

    def _read(self, shards: Sequence[PartitionPrepared]) -> Window:
        """This worker's share of a window of these shards."""
        shards = [shard for shard in shards if shard.rows]  # else one worker's whole share may be a shard without any
        shares = [self._share(position, len(shards)) for position in range(len(shards))]
        here = [(shard, share) for shard, share in zip(shards, shares, strict=True) if share]
        fetched = self._fetched([shard for shard, _ in here])
        pieces = (rows.part(share) for rows, (_, share) in zip(fetched, here, strict=True))
        rows = Rows.joined(pieces, sum(len(range(shard.rows)[share]) for shard, share in here))
        return Window.shared(rows, [(shard.rows, share) for shard, share in zip(shards, shares, strict=True)])

    def _share(self, position: int, shards: int) -> slice | None:
        """Which rows of the window's n-th shard are this worker's."""
        workers, rank = self._compute.workers, self._compute.rank
        if position >= shards - shards % workers:
            return slice(rank, None, workers)
        return slice(None) if position % workers == rank else None

    def _fetched(self, shards: Sequence[PartitionPrepared]) -> Iterator[Rows]:
        return _ahead(self._rows, shards, _READ_AHEAD)

    def _rows(self, announcement: PartitionPrepared) -> Rows:
        if (kept := self._kept.pop(announcement.key, None)) is not None:
            return kept  # and never held twice, here and in a window
        return self._checked(fetch_shard(self._store, announcement))

    def _checked(self, shard: Shard) -> Rows:
        """Its rows, if their features are like those of the shards before. Raises: BadInput."""
        if len(shard.labels_N):
            found = specification(shard.features)
            self.features = self.features or found
            if found != self.features:
                raise BadInput(
                    f"the transform gives {listed(found)} in one shard and {listed(self.features)} in another",
                    "declare the application's `features`, and let it give those, whatever the batch",
                )
        return Rows.of(shard.features, shard.labels_N)


def _ahead(work: Callable[[Item], Found], items: Iterable[Item], pieces: int) -> Iterator[Found]:
    """`work` on each, in order, and on a few ahead of what is taken."""
    with ThreadPoolExecutor(pieces, thread_name_prefix="shards") as executor:
        waiting: deque[Future[Found]] = deque()
        for item in items:
            waiting.append(executor.submit(work, item))
            if len(waiting) > pieces:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
