"""The quickest variant of a model still gives the model's answers, and a model that gives none is refused."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeplambda.errors import UnfitModel
from examples.digits.application import Digits
from speed_layer.model_service.fast_path import EXACT, PASS_ROWS, ROUNDED, FastPath, fast_path


def digits() -> nn.Module:
    torch.manual_seed(7)
    model: nn.Module = Digits().build_model().eval().requires_grad_(False)
    with torch.no_grad():  # far apart, as a trained model's outputs are
        model.get_parameter("9.weight").mul_(40)
    return model


def rows(count: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, *shape)).astype(np.float32)


def in_fp32(model: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        outputs: NDArray[np.float32] = model(torch.from_numpy(features)).numpy()
    return outputs


@pytest.mark.parametrize("count", [1, 2, 3, 33, PASS_ROWS[-1], PASS_ROWS[-1] + 1, 300])
def test_predictions_are_those_of_fp32(count: int) -> None:
    model, features = digits(), rows(count, 1, 28, 28)
    outputs = fast_path(model, (1, 28, 28), name="digits/1", decides=True)(features)
    expected = in_fp32(model, features)
    assert outputs.shape == expected.shape
    np.testing.assert_array_equal(outputs.argmax(axis=1), expected.argmax(axis=1))
    share = np.abs(outputs - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert share.max() < ROUNDED


def test_a_close_call_is_made_in_fp32() -> None:
    exact = Tensor([[1.0, 1.01, 0.0], [5.0, 0.0, 0.0]])
    rounded = Tensor([[1.01, 1.0, 0.0], [5.1, 0.0, 0.0]])

    def pick(outputs: Tensor, features: Tensor) -> Tensor:
        return outputs[features[:, 0].long()].clone()

    path = FastPath(
        variant="bfloat16",
        forward=lambda features: pick(rounded, features),
        exact=lambda features: pick(exact, features),
        rescores=True,
    )
    outputs = path(np.array([[0], [1]], dtype=np.float32))
    np.testing.assert_allclose(outputs, [[1.0, 1.01, 0.0], [5.1, 0.0, 0.0]])


def test_a_model_whose_outputs_are_the_figures_stays_in_fp32() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    path = fast_path(model, (6,), name="prices/1", decides=False)
    features = rows(9, 6)
    assert path.variant.startswith("fp32")
    np.testing.assert_allclose(path(features), in_fp32(model, features), rtol=EXACT, atol=1e-6)


class OnlyFp32(nn.Module):
    """Has no kernel for another type, and knows exactly one layout."""

    def forward(self, features: Tensor) -> Tensor:
        if features.dtype != torch.float32:
            raise RuntimeError("not implemented for this type")
        return features.view(len(features), -1)[:, :2]


def test_a_model_that_other_types_break_is_served_as_it_is() -> None:
    path = fast_path(OnlyFp32(), (2, 3, 3), name="odd/1", decides=True)
    features = rows(5, 2, 3, 3)
    np.testing.assert_array_equal(path(features), features.reshape(5, -1)[:, :2])


class Returns(nn.Module):
    def __init__(self, shape: Sequence[int], value: float = 0.0) -> None:
        super().__init__()
        self.shape, self.value = tuple(shape), value

    def forward(self, features: Tensor) -> Tensor:
        return torch.full((len(features), *self.shape), self.value)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Linear(3, 2), "card's shape"),
        (Returns([2], float("nan")), "not finite"),
        (Returns([2], float("inf")), "not finite"),
        (Returns([2, 2]), "for 32 rows"),
        (nn.Flatten(0), "for 32 rows"),
    ],
)
def test_a_model_that_gives_no_answer_is_refused(model: nn.Module, named: str) -> None:
    with pytest.raises(UnfitModel, match=named):
        fast_path(model, (4,), name="bad/1", decides=True)
