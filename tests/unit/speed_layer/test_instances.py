"""The simple protocol takes whole events or their payload alone, and names the instance that is wrong."""

import json
from base64 import b64encode
from typing import Any

import numpy as np
import pytest
from pydantic_core import to_json
from werkzeug.exceptions import RequestEntityTooLarge

from deeplambda.adapters.model_service import ROWS_LIMIT
from deeplambda.application import Event
from deeplambda.errors import BadInput, InvalidEvent
from deeplambda.objective import Predictions
from examples.digits.application import DigitDrawn
from speed_layer.model_service.instances import decode_instances, encode_predictions

IMAGE = b64encode(bytes(784)).decode()


def decode(*instances: Any) -> list[Event]:
    return decode_instances(to_json({"instances": instances}), DigitDrawn, limit_bytes=5_000)


def test_the_payload_alone_is_enough() -> None:
    (event,) = decode({"image": IMAGE})
    assert event.event_id == "instance-0"
    assert event.occurred_at.tzinfo is not None


def test_an_events_own_id_and_time_are_kept() -> None:
    given = {"event_id": "mine", "occurred_at": "2026-01-02T03:04:05Z", "image": IMAGE}
    (event,) = decode(given)
    assert (event.event_id, event.occurred_at.year) == ("mine", 2026)


def test_of_a_cloud_event_as_well_id_and_time_may_be_left_out() -> None:
    envelope = {"specversion": "1.0", "type": "drawn", "source": "/test", "data": {"image": IMAGE}}
    first, second = decode(envelope, envelope | {"id": "mine", "time": "2026-01-02T03:04:05Z"})
    assert (first.event_id, first.occurred_at.tzinfo is None) == ("instance-0", False)
    assert (second.event_id, second.occurred_at.year) == ("mine", 2026)


def test_very_many_lists_are_refused_unparsed() -> None:
    with pytest.raises(BadInput, match="lists and objects"):
        decode_instances(b"[" * 2**21, DigitDrawn, limit_bytes=5_000)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"instances": []}', b'{"instances": {}}', b"[" * 10_000])
def test_what_is_no_list_of_instances_is_refused(body: bytes) -> None:
    with pytest.raises(BadInput) as refused:
        decode_instances(body, DigitDrawn, limit_bytes=5_000)
    assert not isinstance(refused.value, InvalidEvent)


@pytest.mark.parametrize(
    ("instance", "named"),
    [
        ({}, "instance 1: field 'image' is missing"),
        ({"image": 3}, "instance 1: field 'image'"),
        ({"image": "AAAA"}, "instance 1: field 'image'.*784"),
        ({"image": IMAGE, "event_id": ""}, "instance 1: field 'event_id'"),
        ({"image": IMAGE, "occurred_at": "yesterday"}, "instance 1: field 'occurred_at'"),
        ("text", "instance 1"),
        (None, "instance 1"),
    ],
)
def test_a_refused_instance_is_named_with_its_field(instance: Any, named: str) -> None:
    with pytest.raises(InvalidEvent, match=named):
        decode({"image": IMAGE}, instance)


def test_an_instance_beyond_the_limit_is_too_large() -> None:
    with pytest.raises(RequestEntityTooLarge, match="instance 1"):
        decode({"image": IMAGE}, {"image": IMAGE, "note": "x" * 5_000})


def test_more_instances_than_a_request_may_have_are_too_many() -> None:
    body = to_json({"instances": [{}] * (ROWS_LIMIT + 1)})
    with pytest.raises(RequestEntityTooLarge, match=f"at most {ROWS_LIMIT}"):
        decode_instances(body, DigitDrawn, limit_bytes=5_000)


def test_the_reply_names_version_and_events() -> None:
    predictions = Predictions(values=["7", "1"], confidence_N=np.array([0.5, np.nan]))
    reply = encode_predictions(decode({"image": IMAGE}, {"event_id": "b", "image": IMAGE}), 3, predictions)
    assert json.loads(reply) == {
        "model_version": 3,
        "predictions": [
            {"event_id": "instance-0", "prediction": "7", "confidence": 0.5, "value": None, "scores": None},
            {"event_id": "b", "prediction": "1", "confidence": None, "value": None, "scores": None},
        ],
    }


def test_the_reply_carries_numbers_and_scores_where_there_are_any() -> None:
    def rows(**given: Any) -> list[dict[str, Any]]:
        predictions = Predictions(values=["7"], confidence_N=np.array([np.nan]), **given)
        found: list[dict[str, Any]] = json.loads(encode_predictions(decode({"image": IMAGE}), 3, predictions))[
            "predictions"
        ]
        return found

    assert rows(numbers_N=np.array([7.25]))[0]["value"] == 7.25
    assert rows(numbers_N=np.array([np.nan]))[0]["value"] is None
    assert rows(scores=[{"7": 0.75, "1": 0.25}])[0]["scores"] == {"7": 0.75, "1": 0.25}
