"""What a label makes of the answer that it is of."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from batch_layer.live_answers import Label, judged, label_of
from deeplambda.objective import Classification, MultiLabel, Objective, Regression

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DIGITS, TOPICS, HOURS = Classification("0123456789"), MultiLabel(("art", "sport")), Regression()


def answer(prediction: str, value: float | None = None, **labelled: Any) -> dict[str, Any]:
    return {"prediction": prediction, "value": value, "label": None, "labelled_at": None} | labelled


@pytest.mark.parametrize(
    ("objective", "given", "label", "truth", "correct", "error"),
    [
        (DIGITS, answer("7"), "7", "7", True, None),
        (DIGITS, answer("7"), "1", "1", False, None),
        (TOPICS, answer("art,sport"), '["sport", "art"]', "art,sport", True, None),
        (TOPICS, answer(""), "", "", True, None),
        (HOURS, answer("10", 10.0), "12.5", "12.5", None, 2.5),
    ],
)
def test_it_is_compared_as_the_objective_writes_it(
    objective: Objective, given: dict[str, Any], label: str, truth: str, correct: bool | None, error: float | None
) -> None:
    row = judged(given, Label("event", label, NOON), objective)
    assert row == given | {"label": truth, "labelled_at": NOON, "correct": correct, "error": error}


@pytest.mark.parametrize(
    ("objective", "given", "label"),
    [
        (DIGITS, answer("7"), "NaN"),
        (DIGITS, answer("7"), "maybe"),
        (TOPICS, answer("art"), "weather"),
        (HOURS, answer("10", 10.0), "NaN"),
        (HOURS, answer("10", 10.0), "1e200"),
        (HOURS, answer("10", 10.0), "ten"),
    ],
)
def test_what_training_refuses_counts_neither_as_right_nor_as_wrong(
    objective: Objective, given: dict[str, Any], label: str
) -> None:
    assert judged(given, Label("event", label, NOON), objective) is None


@pytest.mark.parametrize(("later_s", "counts"), [(-1, False), (0, True), (1, True)])
def test_the_newest_label_by_the_brokers_time_counts(later_s: int, counts: bool) -> None:
    known = answer("7", label="1", labelled_at=NOON)
    found = judged(known, Label("event", "7", NOON + timedelta(seconds=later_s)), DIGITS)
    assert (found is not None) == counts


def test_a_label_that_is_read_again_is_no_news() -> None:
    known = answer("7", label="1", labelled_at=NOON)
    assert judged(known, Label("event", "1", NOON), DIGITS) is None


@pytest.mark.parametrize(
    ("given", "text"),
    [('"art,sport"', "art,sport"), ('["art","sport"]', '["art","sport"]'), ("true", "true"), ("7", "7")],
)
def test_a_label_that_is_no_text_is_kept_as_json(given: str, text: str) -> None:
    value = f'{{"event_id": "a", "label": {given}}}'.encode()
    found = label_of(SimpleNamespace(topic="t", partition=0, offset=1, timestamp=0, key=b"a", value=value))
    assert found is not None
    assert found.label == text
