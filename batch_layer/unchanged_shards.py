"""Unchanged shards: those of an earlier data set's examples that are the same in a new one, copied within S3.

A shard follows from the snapshot of the examples, the code, its learned state and the size of shards. Where only
labelled events have come, and learning from them changed no state, the examples' shards are what they were. A state
that did change makes all features anew. Copies need nobody to count who refers to what: each data set goes by itself.
"""

import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from pydantic_core import to_json

from batch_layer.shard_format import MANIFEST, announcement_key, manifest_key, payload_key, shard_key
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.records import topics
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.splits import RECENT, TEST

JUDGED = (TEST, RECENT)
"""The splits whose payloads are kept beside their shards."""
_AT_ONCE = 16
_ANNOUNCED_AT_ONCE = 256


def copied(
    settings: Settings, application: str, earlier: str, dataset: str, wanted: Mapping[tuple[str, int], int]
) -> list[PartitionPrepared]:
    """Copy shards of the data set `earlier` into `dataset`, and announce them.

    wanted: by split and partition, how many partitions the split has in `dataset`. What upkeep has removed meanwhile is
    left out. Raises: NotReady.
    """
    store, made = ObjectStore(settings), list[PartitionPrepared]()
    store.client  # noqa: B018  # made once, before there are threads

    def copy(shard: PartitionPrepared) -> PartitionPrepared | None:
        place, started = (shard.split, shard.partition), time.monotonic()
        try:
            if shard.split in JUDGED and shard.rows:
                store.copy(payload_key(application, earlier, *place), payload_key(application, dataset, *place))
            store.copy(shard.key, shard_key(application, dataset, *place))
        except BadInput:
            return None
        facts = {"dataset": dataset, "key": shard_key(application, dataset, *place), "partitions": wanted[place]}
        return shard.model_copy(update=facts | {"at": now(), "duration_s": time.monotonic() - started})

    def keep(announcement: PartitionPrepared) -> None:
        store.put(
            announcement_key(application, dataset, announcement.split, announcement.partition), to_json(announcement)
        )

    listed = MANIFEST.validate_json(store.get(manifest_key(application, earlier)))
    waiting = (each for each in listed if (each.split, each.partition) in wanted)
    with ThreadPoolExecutor(_AT_ONCE) as executor, Publisher(settings) as publisher:
        while some := [*islice(waiting, _ANNOUNCED_AT_ONCE)]:
            announcements = [each for each in executor.map(copy, some) if each is not None]
            for announcement in announcements:
                publisher.send(topics.LIFECYCLE, application, announcement)
            publisher.flush()
            deque(executor.map(keep, announcements), maxlen=0)
            made += announcements
    return made
