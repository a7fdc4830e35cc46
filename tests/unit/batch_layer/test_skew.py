"""What counts as a difference between stream and batch."""

from typing import Any

import pytest

from batch_layer.skew import differing
from deeplambda.clock import now
from deeplambda.records.predictions import Prediction, json_text


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
    assert differing(said("head", confidence=0.7, scores=scores), row("head", scores, confidence=0.705)) == set()
    assert differing(said("3.14159", value=3.14159), row("3.14", value=3.14)) == set()


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
    assert differing(stream, batch) == fields


def test_of_two_classes_as_likely_as_one_another_either_may_be_the_answer() -> None:
    even = {"head": 0.505, "tail": 0.495}
    assert differing(said("tail", confidence=0.5), row("head", even, confidence=0.505)) == set()
    swapped = {"head": 0.9, "tail": 0.1}
    assert differing(said("tail", confidence=0.9), row("head", swapped, confidence=0.9)) == {"prediction"}


def test_small_numbers_are_held_against_what_is_usual() -> None:
    assert differing(said("0.001", value=0.001), row("0.019", value=0.019), usual=0.01) == {"prediction", "value"}
    assert differing(said("0.0001", value=0.0001), row("0.0002", value=0.0002), usual=0.01) == set()
