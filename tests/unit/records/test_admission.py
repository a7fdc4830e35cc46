"""A batch of records is taken apart into features and refusals, and nothing falls between."""

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pydantic_core import to_json

from deeplambda.records.admission import admit
from deeplambda.records.decoding import Reason, RefusedEvent
from deeplambda.records.featurizer import Featurizer
from examples.digits.application import Digits
from tests.unit.records.test_decoding import GOOD, PIXELS, Paid


def record(event_id: str, **changes: object) -> tuple[bytes, bytes]:
    return event_id.encode(), to_json(GOOD | {"event_id": event_id} | changes)


def admit_all(records: Sequence[tuple[bytes | None, bytes | None]], application: Digits | None = None):  # type: ignore[no-untyped-def]
    return admit(Featurizer(application or Digits(), code_version="c0de"), records, limit_bytes=10_000)


def test_good_records_around_a_bad_one_pass() -> None:
    admitted = admit_all([record("a"), (b"b", b"not json"), record("c")])
    assert admitted.rows_N == [0, 2]
    assert [event.event_id for event in admitted.events_N] == ["a", "c"]
    assert [(row, refusal.reason) for row, refusal in admitted.refused] == [(1, Reason.NOT_JSON)]
    assert admitted.features["features"].shape == (2, 1, 28, 28)


def test_features_are_the_normalised_pixels() -> None:
    expected = (np.frombuffer(PIXELS, np.uint8) / 255 - 0.1307) / 0.3081
    features = admit_all([record("a")]).features["features"]
    assert features.dtype == np.float32
    np.testing.assert_allclose(features.reshape(-1), expected, atol=1e-6)


def test_a_batch_of_refusals_alone_is_taken() -> None:
    admitted = admit_all([(None, None), (b"x", b"{}")])
    assert (len(admitted.events_N), len(admitted.refused)) == (0, 2)


class Till(Digits):
    event = Paid


@pytest.mark.parametrize(
    ("application", "changes", "said"),
    [(Digits(), {"image": "AAAA\r\nAAAA"}, "not base64"), (Till(), {"amount": 0}, "ZeroDivisionError")],
)
def test_what_was_refused_is_not_kept_for_ever(application: Digits, changes: dict[str, Any], said: str) -> None:
    def alive() -> int:
        gc.collect()
        return sum(isinstance(each, RefusedEvent) for each in gc.get_objects())

    before, bad = alive(), record("a", **changes)
    admitted = admit_all([bad] * 10, application)
    assert said in str(admitted.refused[0][1])
    assert alive() == before + 10
    del admitted
    assert alive() == before


class Fragile(Digits):
    """Its transform divides by the first pixel."""

    name = "fragile"

    def transform(self, batch: pa.RecordBatch) -> NDArray[np.float32]:
        features = super().transform(batch)
        features[[image[0] == 0 for image in batch["image"].to_pylist()]] = np.nan
        return features


def test_features_that_are_not_finite_are_refused() -> None:
    import base64

    bright = base64.b64encode(b"\xff" * 784).decode()
    admitted = admit_all([record("a"), record("b", image=bright)], Fragile())
    assert [event.event_id for event in admitted.events_N] == ["b"]
    assert [(row, refusal.reason) for row, refusal in admitted.refused] == [(0, Reason.BAD_VALUE)]
