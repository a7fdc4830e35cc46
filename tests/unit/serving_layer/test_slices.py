"""Live accuracy by slice: counts of equal slices, as slices."""

from pydantic_core import to_json

from serving_layer.query_service.slices import Counts, by_slice


def group(labelled: int, correct: int, unlabelled: int = 0, /, **values: object) -> tuple[str, Counts]:
    return to_json(values).decode(), Counts(labelled=labelled, correct=correct, unlabelled=unlabelled)


def test_each_field_is_told_of_all_predictions_with_the_most_first() -> None:
    found = by_slice(
        [group(10, 9, shop="a", new=True), group(20, 10, 5, shop="b", new=True), group(1, 0, shop="a", new=None)]
    )
    told = [(name, counts.labelled, counts.correct, counts.unlabelled) for name, counts in found]
    assert told == [("new=True", 30, 19, 5), ("new=None", 1, 0, 0), ("shop=b", 20, 10, 5), ("shop=a", 11, 9, 0)]


def test_numbers_are_divided_into_quarters_of_the_predictions() -> None:
    found = by_slice([group(1, int(n < 25), amount=float(n)) for n in range(100)])
    assert [(name, counts.labelled, counts.correct) for name, counts in sorted(found)] == [
        ("amount in [-inf, 24.75)", 25, 25),
        ("amount in [24.75, 49.5)", 25, 0),
        ("amount in [49.5, 74.25)", 25, 0),
        ("amount in [74.25, inf)", 25, 0),
    ]


def test_a_few_integers_are_values_and_many_are_quarters() -> None:
    assert [name for name, _ in by_slice([group(1, 1, shop=n) for n in range(3)])] == ["shop=0", "shop=1", "shop=2"]
    assert len(by_slice([group(1, 1, shop=n) for n in range(100)])) == 4


def test_a_slice_without_any_truth_is_not_told_and_of_many_texts_the_most_frequent_are() -> None:
    assert not by_slice([group(0, 0, 7, shop="a")])
    found = by_slice([group(n, n, shop=f"shop {n}") for n in range(1, 50)])
    assert len(found) == 20
    assert found[0][0] == "shop=shop 49"
