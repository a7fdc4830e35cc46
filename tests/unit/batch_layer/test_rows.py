"""An epoch sees every row, in equal batches, and the same ones however many workers share them."""

import pytest
import torch

from batch_layer.rows import Rows, Window, batches


def numbered(first: int, count: int) -> Rows:
    numbers_N = torch.arange(first, first + count)
    return Rows({"features": numbers_N[:, None].float()}, numbers_N)


def drawn(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seen(windows: list[Window], size: int, seed: int = 1) -> list[list[int]]:
    return [batch.rows.labels_N.tolist() for batch in batches(windows, size, drawn(seed))]


WINDOWS = [Window.whole(numbered(0, 10)), Window.whole(numbered(10, 7)), Window.whole(numbered(17, 6))]


def test_batches_are_of_one_size_and_hold_every_row() -> None:
    found = seen(WINDOWS, 4)
    assert {len(batch) for batch in found} == {4}
    assert len(found) == 6
    every = [row for batch in found for row in batch]
    assert sorted(every[:23]) == list(range(23))
    assert set(every[23:]) <= set(found[0]), "what the last batch lacks comes from the first"


def test_features_stay_with_their_labels() -> None:
    for batch in batches(WINDOWS, 4, drawn()):
        assert batch.rows.features["features"][:, 0].tolist() == batch.rows.labels_N.tolist()


def test_a_window_is_shuffled_within_itself_and_another_seed_draws_another_order() -> None:
    flat = [row for batch in seen(WINDOWS, 4) for row in batch]
    assert set(flat[:10]) == set(range(10)) != flat[:10]
    assert seen(WINDOWS, 4) == seen(WINDOWS, 4) != seen(WINDOWS, 4, seed=2)


@pytest.mark.parametrize("rows", [0, 3])
def test_fewer_rows_than_a_batch_are_one_batch(rows: int) -> None:
    assert [len(batch) for batch in seen([Window.whole(numbered(0, rows))], 5)] == ([3] if rows else [])


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_hold_parts_of_the_batches_that_one_alone_would_have(workers: int) -> None:
    shards = [numbered(0, 10), numbered(10, 7), numbered(17, 6), numbered(23, 5)]
    alone = [Window.whole(Rows.joined(shards, 28))]

    def share(rank: int) -> list[Window]:
        whole = len(shards) - len(shards) % workers
        here = [
            slice(rank, None, workers) if n >= whole else slice(None) if n % workers == rank else None
            for n in range(len(shards))
        ]
        mine = [shard.part(part) for shard, part in zip(shards, here, strict=True) if part]
        rows = Rows.joined(mine, sum(map(len, mine)))
        return [Window.shared(rows, [(len(shard), part) for shard, part in zip(shards, here, strict=True)])]

    together = [seen(share(rank), 4) for rank in range(workers)]
    for of_workers, whole in zip(zip(*together, strict=True), seen(alone, 4), strict=True):
        assert sorted(row for part in of_workers for row in part) == sorted(whole)


def test_pieces_are_joined_in_their_order_and_empty_ones_are_nothing() -> None:
    pieces = (numbered(first, count) for first, count in [(0, 0), (0, 2), (2, 0), (2, 3)])
    joined = Rows.joined(pieces, 5)
    assert joined.labels_N.tolist() == joined.features["features"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert len(Rows.joined((), 0)) == 0
