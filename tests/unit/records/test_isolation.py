import pytest

from deeplambda.errors import BadInput, Conflict, TooManyRefused
from deeplambda.records.isolation import halved

ROWS = 100


def attempt(bad: set[int], calls: list[slice] | None = None):  # type: ignore[no-untyped-def]
    def look(rows: slice) -> list[int]:
        if calls is not None:
            calls.append(rows)
        numbers = list(range(ROWS))[rows]
        if blamed := bad & set(numbers):
            raise BadInput(f"{min(blamed)} is bad")
        return numbers

    return look


@pytest.mark.parametrize("bad", [set(), {0}, {99}, {3, 4, 50}, set(range(ROWS))])
def test_every_bad_row_stands_alone_and_every_other_goes_through_once(bad: set[int]) -> None:
    found = halved(attempt(bad), ROWS, BadInput)
    assert {row: exc.message for row, exc in found.refused.items()} == {row: f"{row} is bad" for row in bad}
    assert [number for _, numbers in found.pieces for number in numbers] == sorted(set(range(ROWS)) - bad)


def test_one_bad_row_costs_few_calls() -> None:
    calls: list[slice] = []
    halved(attempt({42}, calls), ROWS, BadInput)
    assert len(calls) < 20


def test_no_rows_need_no_call() -> None:
    calls: list[slice] = []
    assert halved(attempt(set(), calls), 0, BadInput).pieces == []
    assert calls == []


def test_past_the_limit_the_batch_as_a_whole_fails() -> None:
    with pytest.raises(TooManyRefused, match="0 is bad"):
        halved(attempt({0, 1}), ROWS, BadInput, within_s=-1)


def test_what_is_not_the_rows_fault_passes_through() -> None:
    def changed(_: slice) -> None:
        raise Conflict("another version serves")

    with pytest.raises(Conflict):
        halved(changed, ROWS, BadInput)
