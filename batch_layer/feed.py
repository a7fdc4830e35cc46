"""The feed: a data set's shards in the order they are announced, while the data set is still being prepared.

Source of order: the data set's manifest where it is whole already, else the lifecycle topic from its beginning.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Any

from numpy.typing import NDArray
from pydantic import ValidationError

from batch_layer.shard_format import MANIFEST, manifest_key, read_shard
from deeplambda.adapters.kafka import consumer, kafka_errors
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.config import Settings
from deeplambda.errors import CorruptObject, NotReady
from deeplambda.features import Features
from deeplambda.records import topics
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.sources import split_names

_REMEDY = "run 'deeplambda batch prepare', and see how far it got"
_POLL_MS = 250
_READ_AHEAD = 2
"""Shards that wait, fetched, for whoever trains."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A fetched shard: its announcement, features by name and labels (N,)."""

    announcement: PartitionPrepared
    features: Features
    labels_N: NDArray[Any]


def fetch_shard(store: ObjectStore, announcement: PartitionPrepared) -> Shard:
    """What was announced. Raises: CorruptObject, which names the object; BadInput when it is gone; NotReady."""
    name = f"s3://{store.bucket}/{announcement.key}"
    features, labels_N = read_shard(store.get(announcement.key, sha256=announcement.sha256), name)
    if len(labels_N) != announcement.rows:
        raise CorruptObject(f"{name} holds {len(labels_N)} rows, {announcement.rows} were announced", _REMEDY)
    return Shard(announcement=announcement, features=features, labels_N=labels_N)


class Announcements:
    """Which partitions of one data set have been announced; a partition counts once however often it is told."""

    def __init__(self, application: str, dataset: str, splits: Iterable[str]) -> None:
        self.dataset = dataset
        self._application = application
        self._announced: dict[str, dict[int, PartitionPrepared]] = {split: {} for split in splits}

    def take(self, announcement: PartitionPrepared) -> bool:
        """Note one; whether it tells of a partition of this data set that is new."""
        if (announcement.application, announcement.dataset) != (self._application, self.dataset):
            return False
        of_split = self._announced.get(announcement.split)
        if of_split is None or announcement.partition in of_split:
            return False
        of_split[announcement.partition] = announcement
        return True

    @property
    def complete(self) -> bool:
        """Whether every partition of every split has been announced."""
        return all(of_split and len(of_split) >= self._expected(split) for split, of_split in self._announced.items())

    def missing_partitions(self) -> list[str]:
        """What has not been announced of splits that have begun to be: `train-00003`."""
        return [
            f"{split}-{i:05}"
            for split, of_split in self._announced.items()
            for i in range(self._expected(split))
            if i not in of_split
        ]

    def missing(self) -> list[str]:
        """What has not been announced, as words: `train-00003`, or `all of test` before its first partition."""
        unheard = [f"all of {split}" for split, of_split in self._announced.items() if not of_split]
        return self.missing_partitions() + unheard

    def _expected(self, split: str) -> int:
        return max((announcement.partitions for announcement in self._announced[split].values()), default=0)


class ShardFeed:
    """Iterate it once: every shard of every split that the application's sources make, a few fetched ahead in a thread.

    preparing: the job that prepares the data set in this process, where there is one; its failure ends the feed.
    patience_s: without such a job, how long to wait for the next announcement.
    Raises, while iterating: NotReady when patience ends or the job failed, CorruptObject with the object's name.
    """

    def __init__(
        self,
        settings: Settings,
        application: Application,
        dataset: str,
        *,
        preparing: "Future[Any] | None" = None,
        patience_s: float = 120.0,
    ) -> None:
        self._settings = settings
        self._application = application.name
        self._preparing = preparing
        self._patience_s = patience_s
        self._store = ObjectStore(settings)
        self._stopped = Event()
        self._room = Semaphore(_READ_AHEAD)
        self._manifest = manifest_key(application.name, dataset)
        self.announcements = Announcements(
            application.name, dataset, split_names(application.sources, application.splits)
        )

    def __iter__(self) -> Generator[Shard, None, None]:
        fetched: SimpleQueue[Shard | Exception | None] = SimpleQueue()
        thread = Thread(target=self._fetch_all, args=(fetched,), name="shard-feed", daemon=True)
        thread.start()
        try:
            while (item := fetched.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self._room.release()
                yield item
        finally:
            self._stopped.set()
            self._room.release()
            thread.join()

    def _fetch_all(self, fetched: "SimpleQueue[Shard | Exception | None]") -> None:
        try:
            for announcement in self.announced():
                self._room.acquire()
                if self._stopped.is_set():
                    return
                fetched.put(fetch_shard(self._store, announcement))
            fetched.put(None)
        except Exception as exc:  # raised again where the feed is read
            fetched.put(exc)

    def announced(self) -> Iterator[PartitionPrepared]:
        """What is announced, each once, until all is. Raises: as iterating does."""
        if not self.prepared():
            yield from self._followed()
        if not (self.announcements.complete or self._stopped.is_set()):
            yield from self.listed()

    def prepared(self) -> bool:
        """Whether the data set is whole, so that its manifest lists it."""
        return self._store.digest(self._manifest) is not None

    def listed(self) -> Iterator[PartitionPrepared]:
        """What the manifest names and was not announced yet. A split of which it names nothing has no rows.

        Raises: CorruptObject when it lacks one, BadInput when there is no manifest, NotReady.
        """
        name = f"s3://{self._store.bucket}/{self._manifest}"
        try:
            listed = MANIFEST.validate_json(self._store.get(self._manifest))
        except ValidationError as exc:
            raise CorruptObject(f"{name} is no manifest: {exc}", _REMEDY) from exc
        yield from filter(self.announcements.take, listed)
        if missing := self.announcements.missing_partitions():
            raise CorruptObject(f"{name} lacks {', '.join(missing)}", _REMEDY)

    def _followed(self) -> Iterator[PartitionPrepared]:
        """What the lifecycle topic tells, until all is told or the preparation in this process has ended."""
        reader = consumer(self._settings, topics.LIFECYCLE)
        try:
            last_new_s = time.monotonic()
            while not (self.announcements.complete or self._stopped.is_set()):
                ended = self._preparation_ended()
                with kafka_errors(self._settings):
                    polled = reader.poll(timeout_ms=_POLL_MS)
                for record in (record for records in polled.values() for record in records):
                    announcement = partition_prepared(record.value)
                    if announcement is None or not self._is_there(announcement):
                        continue
                    if self.announcements.take(announcement):
                        yield announcement
                        last_new_s = time.monotonic()
                if ended:
                    return
                if self._preparing is None and time.monotonic() - last_new_s > self._patience_s:
                    raise NotReady(
                        f"no shard of {self._application}'s data set {self.announcements.dataset} was announced for "
                        f"{self._patience_s:.0f} s; missing: {', '.join(self.announcements.missing())}",
                        _REMEDY,
                    )
        finally:
            reader.close()

    def _is_there(self, announcement: PartitionPrepared) -> bool:
        """Whether a shard of this data set is on S3: upkeep may have removed it since it was announced long ago."""
        ours = announcement.dataset == self.announcements.dataset
        return ours and self._store.digest(announcement.key) == announcement.sha256

    def _preparation_ended(self) -> bool:
        if self._preparing is None or not self._preparing.done():
            return False
        if (failure := self._preparing.exception()) is not None:
            raise NotReady(
                f"preparing {self._application}'s data set {self.announcements.dataset} failed: {failure}", _REMEDY
            ) from failure
        return True


def partition_prepared(value: bytes | None) -> PartitionPrepared | None:
    """The announcement in a lifecycle record; None for records of other types, those of later versions included."""
    if value is None or b"PartitionPrepared" not in value:
        return None
    try:
        return PartitionPrepared.model_validate_json(value)
    except ValidationError:
        return None
