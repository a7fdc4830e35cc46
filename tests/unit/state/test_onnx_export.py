"""The ONNX export takes the tensors by their names and gives what the model gives, ids and all."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deeplambda.errors import UnfitModel
from deeplambda.state.onnx_export import exported

KEPT = {
    "age": np.array([[0.5], [1.5], [2.5]], np.float32),
    "words": np.array([[12_345, 7], [3, 19_999], [0, 1]]),
    "known": np.array([[True, False], [True, True], [False, False]]),
}


class Reads(nn.Module):
    """Its arguments stand in another order than the transform's tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.meaning = nn.Embedding(20_000, 3)

    def forward(self, words: Tensor, known: Tensor, age: Tensor) -> Tensor:
        return (self.meaning(words) * known.unsqueeze(2)).sum(dim=1) + age


@pytest.mark.slow
def test_named_tensors_keep_their_names_and_ids() -> None:
    torch.manual_seed(1)
    model = Reads().eval()
    session = onnxruntime.InferenceSession(exported(model, KEPT), providers=["CPUExecutionProvider"])
    types = {each.name: each.type for each in session.get_inputs()}
    assert types == {"age": "tensor(float)", "words": "tensor(int64)", "known": "tensor(bool)"}
    rows = {name: np.concatenate([array] * 5) for name, array in KEPT.items()}
    (found,) = session.run(["outputs"], rows)
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(array) for name, array in rows.items()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.slow
def test_one_kept_row_is_enough() -> None:
    assert exported(nn.Linear(3, 2).eval(), {"features": np.ones((1, 3), np.float32)})


class Chooses(nn.Module):
    def forward(self, features: Tensor) -> Any:
        return features if features.sum().item() > 0 else -features


def test_a_model_that_cannot_be_exported_is_refused_in_a_sentence() -> None:
    with pytest.raises(UnfitModel, match=r"cannot be exported as ONNX: .*data-dependent.*use operators"):
        exported(Chooses(), {"features": np.ones((2, 3), np.float32)})
