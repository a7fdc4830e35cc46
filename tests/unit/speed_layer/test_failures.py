"""Which failures of a canary's candidate count."""

from collections.abc import Sequence

import pytest

from deeplambda.records.lifecycle import ChallengerFailed
from speed_layer.stream.failures import Failure, Rest, counted


def failure(rows: Sequence[int]) -> Failure:
    return Failure(
        rows=rows,
        fact=ChallengerFailed(application="digits", number=1, version=2, part="stream", reason=f"rows {rows}"),
    )


@pytest.mark.parametrize(
    ("failures", "answered", "expected"),
    [
        ([[3]], {3}, "rows [3]"),
        ([[3]], {4}, None),
        ([[3], [4]], {4}, "rows [4]"),
        ([[3, 4]], {4}, None),
        ([], {3}, None),
    ],
    ids=[
        "of what the champion answers",
        "of what it has no answer to either",
        "of one of two such events",
        "of events together, one of which may be to blame",
        "none",
    ],
)
def test_a_failure_counts_where_the_champion_answers(
    failures: list[list[int]], answered: set[int], expected: str | None
) -> None:
    fact = counted([failure(rows) for rows in failures], answered)
    assert (fact and fact.reason) == expected


def test_scorers_of_one_process_tell_of_one_failure_once() -> None:
    rest = Rest()
    assert not rest.is_on
    assert rest.begin()
    assert rest.is_on
    assert not rest.begin()
