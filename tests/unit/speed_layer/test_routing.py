"""What a micro-batch holds."""

from speed_layer.stream.routing import ranges_of


def test_pieces_of_a_partition_are_one_range() -> None:
    assert ranges_of("[[0,20,30],[1,5,9],[0,10,20]]") == {0: (10, 30), 1: (5, 9)}
