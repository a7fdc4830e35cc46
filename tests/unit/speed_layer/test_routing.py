"""What a micro-batch holds, and how its chunks are scored."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from deeplambda.errors import NotReady
from speed_layer.stream.routing import in_turn, ranges_of


def test_pieces_of_a_partition_are_one_range() -> None:
    assert ranges_of("[[0,20,30],[1,5,9],[0,10,20]]") == {0: (10, 30), 1: (5, 9)}


def test_a_chunk_is_scored_while_the_one_before_is_and_they_come_in_their_order() -> None:
    met = threading.Barrier(2, timeout=10)

    def score(chunk: int) -> int:
        met.wait()
        return 10 * chunk

    with ThreadPoolExecutor(2) as threads:
        assert list(in_turn(threads, [score, score], range(4))) == [0, 10, 20, 30]


def test_no_chunk_is_being_scored_any_more_once_another_has_failed() -> None:
    scored: list[int] = []

    def slow(chunk: int) -> int:
        threading.Event().wait(0.1)
        scored.append(chunk)
        return chunk

    def failing(chunk: int) -> int:
        raise NotReady(f"chunk {chunk}")

    with ThreadPoolExecutor(2) as threads:
        with pytest.raises(NotReady), closing(in_turn(threads, [slow, failing], range(10))) as found:
            list(found)
        assert scored == [0, 2]
