"""The rows that are kept with a version come back as they were, and tell altered code and weights."""

import numpy as np
import pyarrow as pa
import pytest

from deeplambda.errors import CorruptObject, UnfitModel
from deeplambda.state.card import Card
from deeplambda.state.kept_rows import KeptRows
from tests.unit.batch_layer.test_gate import card

KEPT = KeptRows(
    payload=pa.RecordBatch.from_pydict({"text": ["a", None], "scores": [[1.0], []]}),
    features={"words": np.array([[12_345], [12_346]]), "scores": np.array([[0.5], [2.0]], np.float32)},
    outputs=np.array([[1.0, -1.0], [3.0, 0.0]], np.float32),
)


def test_they_come_back_as_they_were() -> None:
    found = KeptRows.decode(KEPT.encode(), "reviews/1")
    assert found.payload.equals(KEPT.payload)
    found.check_features(lambda payload: KEPT.features, "reviews/1")
    found.check_outputs(lambda features: KEPT.outputs, "reviews/1")
    assert found.features["words"].dtype == np.int64


@pytest.mark.parametrize("raw", [b"", KEPT.encode()[:-1], b"\x80\x04cos\nsystem\n"])
def test_what_is_no_whole_object_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(CorruptObject, match="reviews/1"):
        KeptRows.decode(raw, "reviews/1")


@pytest.mark.parametrize(
    "changed",
    [
        {"words": np.array([[12_345], [12_347]])},
        {"words": np.array([[12_345], [12_346]], np.int32)},
        {"words": np.array([[12_345]])},
        {"scores": np.array([[0.5], [2.1]], np.float32)},
    ],
)
def test_code_that_gives_other_features_is_refused(changed: dict[str, np.ndarray]) -> None:
    with pytest.raises(UnfitModel, match=f"other features '{next(iter(changed))}'"):
        KEPT.check_features(lambda payload: KEPT.features | changed, "reviews/1")
    with pytest.raises(UnfitModel, match="other features 'scores'"):
        KEPT.check_features(lambda payload: {"words": KEPT.features["words"]}, "reviews/1")


def test_weights_that_give_other_outputs_are_refused() -> None:
    KEPT.check_outputs(lambda features: KEPT.outputs + np.float32(1e-5), "reviews/1")
    with pytest.raises(UnfitModel, match="other outputs"):
        KEPT.check_outputs(lambda features: KEPT.outputs[::-1], "reviews/1")
    with pytest.raises(UnfitModel, match="not finite"):
        KEPT.check_outputs(lambda features: KEPT.outputs * np.nan, "reviews/1")


def test_a_card_of_the_first_form_is_read() -> None:
    now = card(1, 0.9)
    known = now.model_dump(mode="json", exclude={"features", "code_sha256", "state_sha256", "kept_rows_sha256"})
    assert Card.model_validate(known | {"feature_shape": [1, 28, 28]}) == now
