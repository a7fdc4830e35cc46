"""Summaries and detector, on made-up columns; `test_drift_of_digits` has a real model. Legend: N rows, K columns."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel

from batch_layer.drift import THRESHOLD, Detector, compared, named, rarest, worsened
from batch_layer.summaries import Column, Histogram, accuracy_columns, histograms, input_columns
from deeplambda.application import Event, payload_batch
from deeplambda.fields import grey_image

RANDOM = np.random.default_rng(11)
FIRST_N = np.arange(200)
NONE = np.array([None] * 200, dtype=object)


def texts(random: np.random.Generator, rows: int, share_of_b: float = 0.3) -> Column:
    return np.where(random.random(rows) < share_of_b, "b", "a").astype(object)


def reference() -> dict[str, Histogram]:
    random = np.random.default_rng(0)
    return histograms({"amount": random.gamma(2, size=5_000), "kind": texts(random, 5_000)})


def test_p_of_unchanged_windows_is_uniform() -> None:
    random, known = np.random.default_rng(1), reference()
    windows = [{"amount": random.gamma(2, size=200), "kind": texts(random, 200)} for _ in range(400)]
    p_NK = np.array([[each.p for each in compared(known, window)] for window in windows])
    for below in (0.5, 0.1, 0.02):
        assert (p_NK < below).mean(axis=0) == pytest.approx([below] * 2, abs=3 * (below / 400) ** 0.5 + 0.01)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"amount": RANDOM.gamma(3, size=200), "kind": texts(RANDOM, 200)}, "amount"),
        ({"amount": RANDOM.gamma(2, size=200), "kind": texts(RANDOM, 200, 0.6)}, "kind"),
        ({"amount": RANDOM.gamma(2, size=200), "kind": np.where(FIRST_N < 20, "new", texts(RANDOM, 200))}, "kind"),
        ({"amount": np.where(FIRST_N < 10, np.nan, RANDOM.gamma(2, size=200)), "kind": texts(RANDOM, 200)}, "amount"),
        ({"amount": RANDOM.gamma(2, size=200), "kind": NONE}, "kind"),
    ],
    ids=["shifted", "other shares", "a new value", "some missing", "all missing"],
)
def test_a_change_is_named_by_its_column(changed: dict[str, Column], field: str) -> None:
    fields = compared(reference(), changed)
    assert [each.field for each in named(fields)] == [field]


def test_a_window_of_nothing_but_what_was_never_there_is_the_clearest_change() -> None:
    known = histograms({"kind": texts(np.random.default_rng(0), 10_000)})
    (field,) = compared(known, {"kind": np.where(FIRST_N >= 0, "new", "").astype(object)})
    assert field.p < 1e-6
    assert named([field]) == [field]


def test_examples_are_of_the_bins_that_gained_most() -> None:
    kind = texts(RANDOM, 200)
    kind[[7, 9]] = "new"
    assert set(rarest(reference()["kind"], kind, 2)) == {7, 9}


def test_one_window_by_chance_raises_no_alarm_and_several_strange_ones_do() -> None:
    detector = Detector()
    assert not detector.take(np.array([1e-6, 0.5]))
    detector = Detector()
    assert [detector.take(np.array([1e-4, 1e-4])) for _ in range(3)] == [False, False, True]


def test_an_alarm_is_told_once_until_a_window_is_as_before() -> None:
    detector, strange, usual = Detector(), np.array([1e-30]), np.array([0.6])
    assert [detector.take(p) for p in (strange, strange, strange)] == [True, False, False]
    assert detector.value >= THRESHOLD
    assert not detector.take(usual)
    assert not detector.drifted
    assert not detector.take(usual)
    assert detector.value < 1
    assert detector.take(strange)


def test_false_alarms_come_no_more_often_than_promised() -> None:
    random, alarms, windows = np.random.default_rng(5), 0, 60_000
    detector = Detector()
    for p in random.random(windows):
        alarms += detector.take(np.array([p, p, 1 - p]))  # columns that depend on one another
    assert alarms <= 3 * windows / THRESHOLD + 1


@pytest.mark.parametrize("seed", [1, 5, 7, 8, 10])
def test_what_a_reference_of_few_rows_is_off_by_chance_raises_no_alarm(seed: int) -> None:
    random = np.random.default_rng(seed)

    def drawn(rows: int) -> dict[str, Column]:
        shared = random.normal(size=(rows, 1))
        columns = np.sqrt(0.3) * shared + np.sqrt(0.7) * random.normal(size=(rows, 3))
        return {str(n): column for n, column in enumerate(columns.T)}

    known, detector = histograms(drawn(100)), Detector()
    assert not any(detector.take(np.array([each.p for each in compared(known, drawn(200))])) for _ in range(30))
    moved = {name: column + 1 for name, column in drawn(200).items()}
    assert detector.take(np.array([each.p for each in compared(known, moved)])), "and a change is noticed all the same"


@pytest.mark.parametrize("rows", [100, 100_000])
def test_a_value_that_few_rows_did_not_have_is_no_news_yet_and_that_many_did_not_is(rows: int) -> None:
    known = histograms({"kind": np.array(["a"] * rows, dtype=object)})["kind"]
    window = np.array(["a"] * 195 + ["new"] * 5, dtype=object)
    (found,) = compared({"kind": known}, {"kind": window})
    assert (found.p > 0.05) is (rows == 100)


@pytest.mark.parametrize(("before", "now", "worse"), [(0.1, 0.3, True), (0.1, 0.02, False), (0.0, 0.1, True)])
def test_accuracy_drifts_only_when_it_is_worse(before: float, now: float, worse: bool) -> None:
    judged = histograms(accuracy_columns([n >= 1_000 * before for n in range(1_000)], None))["right"]
    assert worsened(judged, accuracy_columns([n >= 100 * now for n in range(100)], None)["right"]) is worse
    errors = histograms(accuracy_columns(None, RANDOM.random(1_000).tolist()))["error"]
    assert worsened(errors, accuracy_columns(None, (RANDOM.random(100) + 0.1).tolist())["error"])
    assert not worsened(errors, accuracy_columns(None, (RANDOM.random(100) * 0.8).tolist())["error"])


class Place(BaseModel):
    country: Literal["CH", "LI"]


class Everything(Event):
    image: Annotated[bytes, *grey_image(8, 8)]
    readings: list[float]
    amount: float | None
    count: int
    text: str
    flag: bool
    place: Place
    tags: list[str]


def test_every_type_of_field_has_columns() -> None:
    given: dict[str, Any] = {
        "event_id": "a",
        "occurred_at": datetime(2026, 1, 1, tzinfo=UTC),
        "image": bytes(range(64)),
        "readings": [1.0, 3.0],
        "amount": None,
        "count": 3,
        "text": "four",
        "flag": True,
        "place": Place(country="CH"),
        "tags": ["x", "y"],
    }
    found = input_columns(payload_batch(Everything, [Everything(**given), Everything(**given | {"readings": [5.0]})]))
    said = {name: column[0] for name, column in found.items() if column.dtype == object}
    assert said == {"text": "four", "flag": "true", "place.country": "CH"}
    numbers = {"image.mean": 31.5, "image[3,3]": 58.5, "readings.mean": 2, "readings.length": 2, "count": 3}
    numbers |= {"text.length": 4, "tags.length": 2}
    assert {name: found[name][0] for name in numbers} == numbers
    assert np.isnan(found["amount"][0])
    assert len(found["image.deviation"]) == 2
