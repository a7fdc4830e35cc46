"""Which champions stand after promotions and rollbacks: what a rollback goes back to."""

import pytest

from deeplambda.state.registry import _standing

P, B = "promoted", "rolled_back"


@pytest.mark.parametrize(
    ("changes", "standing"),
    [
        ([], []),
        ([(1, P), (2, P), (3, P)], [1, 2, 3]),
        ([(1, P), (2, P), (3, P), (2, B)], [1, 2]),
        ([(1, P), (2, P), (3, P), (4, P), (2, B)], [1, 2]),
        ([(1, P), (2, P), (3, P), (1, B), (3, P)], [1, 3]),
        ([(1, P), (2, P), (1, B), (2, B)], [2]),
        ([(1, P), (2, P), (1, P), (2, B)], [2]),
    ],
    ids=[
        "none",
        "promotions",
        "to the one before",
        "to an earlier one",
        "and promoted again",
        "by name",
        "back and forth",
    ],
)
def test_a_rollback_passes_over_what_it_undoes(changes: list[tuple[int, str]], standing: list[int]) -> None:
    assert _standing(changes) == standing
