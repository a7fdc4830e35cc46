"""Which groups of live answers are told of where there are more than can be."""

from types import SimpleNamespace
from typing import Any

from serving_layer.query_service.live_accuracy import GROUPS_LIMIT, largest_first, newest_first


def group(labelled: int = 1, **columns: Any) -> Any:
    counts = {"labelled": labelled, "unlabelled": 0, "correct": 0, "numbers": 0, "error": 0.0, "squares": 0.0}
    return SimpleNamespace(**counts | columns)


def hours(version: int, first: int, many: int) -> list[Any]:
    return [group(hour=f"{hour:04}", model_version=version) for hour in range(first, first + many)]


def test_the_newest_hours_are_told_of_whichever_version_answered_in_them() -> None:
    found = [key for key, _ in newest_first(hours(9, 0, GROUPS_LIMIT) + hours(8, 400, 50), "hour", "model_version")]
    assert found[:50] == [(f"{hour:04}", 8) for hour in range(449, 399, -1)]
    assert found[50:] == [(f"{hour:04}", 9) for hour in range(GROUPS_LIMIT - 1, 49, -1)]


def test_the_classes_with_the_most_rows_are_told_of() -> None:
    classes = [group(n + 1, truth=f"{n:03}") for n in range(GROUPS_LIMIT + 100)]
    found = [label for (label,), _ in largest_first(classes, "truth")]
    assert found == [f"{n:03}" for n in range(GROUPS_LIMIT + 99, 99, -1)]


def test_what_has_no_label_is_told_of_nowhere() -> None:
    assert newest_first([group(0, model_version=7)], "model_version") == []
