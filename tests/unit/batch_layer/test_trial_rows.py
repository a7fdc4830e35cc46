"""Which rows trials are compared on."""

import pytest

from batch_layer.trial_rows import with_room
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.splits import TRAIN, VALIDATION
from tests.unit.batch_layer.test_feed import prepared


def shards(split: str, rows: int) -> list[PartitionPrepared]:
    """Of 100 bytes each."""
    return [prepared(split, n, partitions=rows) for n in range(rows)]


@pytest.mark.parametrize(
    ("training", "validation", "room", "wanted"),
    [
        (10, 2, 1_200, (10, 2)),
        (2, 10, 1_200, (2, 10)),
        (100, 20, 1_200, (10, 2)),
        (9, 20, 1_200, (9, 3)),
        (100, 20, 500, (4, 1)),
        (100, 0, 500, (5, 0)),
        (100, 20, 150, (1, 0)),
    ],
)
def test_the_validation_split_has_its_share_of_the_room_before_the_training_rows(
    training: int, validation: int, room: int, wanted: tuple[int, int]
) -> None:
    found = with_room([*shards(TRAIN, training), *shards("test", 5), *shards(VALIDATION, validation)], room)
    assert (len(found[TRAIN]), len(found[VALIDATION])) == wanted
