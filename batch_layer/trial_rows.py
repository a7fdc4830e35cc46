"""Which rows the trials of a tuning train on, and which they are compared on."""

import logging
from collections.abc import Sequence
from itertools import accumulate

import torch

from batch_layer.feed import ShardFeed, fetch_shard
from batch_layer.rows import Rows
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application, learns
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.splits import TRAIN, VALIDATION, ByTime

VALIDATION_SHARE = 1 / 6
_log = logging.getLogger(__name__)


def rows_of_trials(settings: Settings, application: Application, dataset: str) -> tuple[Rows, Rows]:
    """What trials train on, and what they are compared on: as many shards of each split as fit the trainer's memory."""
    store, listed = ObjectStore(settings), list(ShardFeed(settings, application, dataset).announced())
    chosen = with_room(listed, settings.trainer_memory_mb * 2**20)
    if left_out := sum(each.split in chosen for each in listed) - sum(map(len, chosen.values())):
        _log.warning("trials do without %d shards, which DEEPLAMBDA_TRAINER_MEMORY_MB has no room for", left_out)
    fetched = ((fetch_shard(store, each) for each in of_split) for of_split in chosen.values())
    training, validation = (_joined([Rows.of(each.features, each.labels_N) for each in of]) for of in fetched)
    if len(training) and len(validation):
        return training, validation
    if any(each.split == VALIDATION and each.rows for each in listed):
        _log.warning("trials have no room for a shard of each split: give more DEEPLAMBDA_TRAINER_MEMORY_MB")
    if len(training) * VALIDATION_SHARE < 1:
        raise BadInput(
            f"data set {dataset} of {application.name} has too few training rows to set some aside", "ingest more"
        )
    if application.splits.grouped or isinstance(application.splits, ByTime):
        _log.warning(
            "trials of %s are compared on rows that are set aside by chance: rows of the same group, or of nearly the "
            "same time, are on both sides, so what learns them by heart looks best; give its splits a validation part",
            application.name,
        )
    if learns(application):
        _log.warning(
            "trials of %s are compared on rows that are set aside from those that its fit has seen with their labels: "
            "what trusts the learned state too much may look best; give its splits a validation part",
            application.name,
        )
    return _set_aside(training)


def with_room(listed: Sequence[PartitionPrepared], room_bytes: int) -> dict[str, list[PartitionPrepared]]:
    """By split, the shards that fit, by partition.

    The validation split has the first share of the room, as large as what would be set aside without one; the training
    rows have the next, and the rest of the validation split what they leave.
    """
    training, validation = (
        sorted((each for each in listed if each.split == split), key=lambda each: each.partition)
        for split in (TRAIN, VALIDATION)
    )
    until = accumulate(each.size_bytes for each in validation)
    first = max(1, sum(end_bytes <= room_bytes * VALIDATION_SHARE for end_bytes in until))
    chosen = _fitting((*validation[:first], *training, *validation[first:]), room_bytes)
    return chosen if chosen[TRAIN] else _fitting(training, room_bytes)


def _fitting(shards: Sequence[PartitionPrepared], room_bytes: int) -> dict[str, list[PartitionPrepared]]:
    chosen: dict[str, list[PartitionPrepared]] = {TRAIN: [], VALIDATION: []}
    for shard in shards:
        if shard.size_bytes <= room_bytes:
            room_bytes -= shard.size_bytes
            chosen[shard.split].append(shard)
    return chosen


def _joined(shards: list[Rows]) -> Rows:
    return Rows.joined(shards, sum(map(len, shards)))


def _set_aside(rows: Rows) -> tuple[Rows, Rows]:
    """The rows divided; equal rows are divided equally."""
    shuffled_N = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    validation_N, training_N = shuffled_N.tensor_split([round(len(rows) * VALIDATION_SHARE)])
    return rows.chosen(training_N), rows.chosen(validation_N)
