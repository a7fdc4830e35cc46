"""What counts as a difference between stream and batch."""

from typing import Any

import pytest

from batch_layer.skew import differing
from deeplambda.clock import now
from deeplambda.objective import Classification, MultiLabel, Regression
from deeplambda.records.predictions import Prediction, json_text

COIN, NUMBER = Classification(("head", "tail")), Regression()
ALARM = Classification(("fine", "fraud"), threshold=0.3)
TOPICS = MultiLabel(("art", "law", "war"), threshold=0.3)


def said(prediction: str, **others: Any) -> Prediction:
    moment = now()
    given = {"received_at": moment, "occurred_at": moment, "predicted_at": moment, "inference_ms": 1.0}
    return Prediction(
        application="coin",
        event_id="a",
        kafka_partition=0,
        kafka_offset=1,
        model_version=1,
        code_version="c0de",
        prediction=prediction,
        **(given | {"confidence": None} | others),
    )


def row(prediction: str, scores: dict[str, float] | None = None, **others: Any) -> dict[str, Any]:
    return {"prediction": prediction, "confidence": None, "value": None, "scores": json_text(scores)} | others


def test_equal_answers_do_not_differ() -> None:
    scores = {"head": 0.7, "tail": 0.3}
    assert differing(said("head", confidence=0.7, scores=scores), row("head", scores, confidence=0.705), COIN) == set()
    assert differing(said("3.14159", value=3.14159), row("3.14", value=3.14), NUMBER) == set()


@pytest.mark.parametrize(
    ("stream", "batch", "fields"),
    [
        (said("head"), row("tail"), {"prediction"}),
        (said("head", confidence=0.9), row("head", confidence=0.8), {"confidence"}),
        (said("head", confidence=0.9), row("head"), {"confidence"}),
        (said("3", value=3.0), row("4", value=4.0), {"prediction", "value"}),
        (said("head", scores={"head": 0.7}), row("head", {"head": 0.6}), {"scores"}),
    ],
)
def test_each_field_that_differs_is_named(stream: Prediction, batch: dict[str, Any], fields: set[str]) -> None:
    assert differing(stream, batch, NUMBER if stream.value else COIN) == fields


def test_of_two_classes_as_likely_as_one_another_either_may_be_the_answer() -> None:
    even = {"head": 0.505, "tail": 0.495}
    assert differing(said("tail", confidence=0.5), row("head", even, confidence=0.505), COIN) == set()
    swapped = {"head": 0.9, "tail": 0.1}
    assert differing(said("tail", confidence=0.9), row("head", swapped, confidence=0.9), COIN) == {"prediction"}


def test_small_numbers_are_held_against_what_is_usual() -> None:
    far, near = row("0.019", value=0.019), row("0.0002", value=0.0002)
    assert differing(said("0.001", value=0.001), far, NUMBER, usual=0.01) == {"prediction", "value"}
    assert differing(said("0.0001", value=0.0001), near, NUMBER, usual=0.01) == set()


def alarm(of_fraud: float) -> tuple[str, dict[str, float], float]:
    """What the one with a threshold of 0.3 says: the class, the scores and the confidence."""
    fraud = of_fraud >= 0.3
    return "fraud" if fraud else "fine", {"fine": 1 - of_fraud, "fraud": of_fraud}, of_fraud if fraud else 1 - of_fraud


@pytest.mark.parametrize(
    ("stream", "batch", "fields"),
    [
        (0.295, 0.305, set()),
        (0.305, 0.295, set()),
        (0.2, 0.295, {"confidence", "scores"}),
        (0.25, 0.35, {"prediction", "confidence", "scores"}),
        (0.295, 0.35, {"prediction", "confidence", "scores"}),
    ],
)
def test_on_both_sides_of_a_threshold_either_class_may_be_the_answer_where_both_are_near_to_it(
    stream: float, batch: float, fields: set[str]
) -> None:
    (one, scores, sure), (other, found, as_sure) = alarm(stream), alarm(batch)
    answer = said(one, confidence=sure, scores=scores)
    assert differing(answer, row(other, found, confidence=as_sure), ALARM) == fields


def test_two_classes_that_are_as_likely_are_no_tie_where_a_threshold_decides() -> None:
    even = {"fine": 0.5, "fraud": 0.5}
    answer = said("fine", confidence=0.5, scores=even)
    assert differing(answer, row("fraud", even, confidence=0.5), ALARM) == {"prediction"}
    near = {"fine": 0.7, "fraud": 0.3}
    assert differing(answer, row("none", near, confidence=0.5), ALARM) == {"prediction", "scores"}


def labels(art: float, law: float, war: float) -> tuple[str, dict[str, float]]:
    scores = {"art": art, "law": law, "war": war}
    return ",".join(name for name, score in scores.items() if score >= 0.3), scores


@pytest.mark.parametrize(
    ("stream", "batch", "fields"),
    [
        ((0.9, 0.295, 0.305), (0.9, 0.305, 0.295), set()),
        ((0.1, 0.295, 0.1), (0.1, 0.305, 0.1), set()),
        ((0.9, 0.295, 0.1), (0.9, 0.305, 0.4), {"prediction", "scores"}),
        ((0.9, 0.2, 0.1), (0.9, 0.4, 0.1), {"prediction", "scores"}),
    ],
)
def test_of_labels_those_near_the_threshold_may_hold_or_not(
    stream: tuple[float, ...], batch: tuple[float, ...], fields: set[str]
) -> None:
    (one, scores), (other, found) = labels(*stream), labels(*batch)
    assert differing(said(one, scores=scores), row(other, found), TOPICS) == fields
