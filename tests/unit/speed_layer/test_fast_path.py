"""The quickest variant of a model still gives the model's answers, and a model that gives none is refused."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeplambda.errors import UnfitModel
from deeplambda.features import Features, call
from examples.digits.application import Digits
from speed_layer.model_service.fast_path import EXACT, PASS_ROWS, ROUNDED, FastPath, fast_path


def digits() -> nn.Module:
    torch.manual_seed(7)
    model: nn.Module = Digits().build_model().eval().requires_grad_(False)
    with torch.no_grad():  # far apart, as a trained model's outputs are
        model.get_parameter("9.weight").mul_(40)
    return model


def rows(count: int, *shape: int) -> Features:
    return {"features": np.random.default_rng(1).standard_normal((count, *shape)).astype(np.float32)}


def in_fp32(model: nn.Module, features: Features) -> NDArray[np.float32]:
    with torch.inference_mode():
        outputs: Tensor = call(model, {name: torch.from_numpy(array) for name, array in features.items()})
    return outputs.numpy()


@pytest.fixture(scope="module")
def chosen_for_digits() -> FastPath:
    return fast_path(digits(), rows(64, 1, 28, 28), name="digits/1", decides=True)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 33, PASS_ROWS[-1], PASS_ROWS[-1] + 1, 300])
def test_predictions_are_those_of_fp32(count: int, chosen_for_digits: FastPath) -> None:
    features = rows(count, 1, 28, 28)
    outputs, expected = chosen_for_digits(features), in_fp32(digits(), features)
    assert outputs.shape == expected.shape
    np.testing.assert_array_equal(outputs.argmax(axis=1), expected.argmax(axis=1))
    share = np.abs(outputs - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert share.max() < ROUNDED


def test_a_close_call_is_made_in_fp32() -> None:
    exact = Tensor([[1.0, 1.01, 0.0], [5.0, 0.0, 0.0]])
    rounded = Tensor([[1.01, 1.0, 0.0], [5.1, 0.0, 0.0]])

    def pick(outputs: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        return outputs[features["features"][:, 0].long()].clone()

    path = FastPath(
        variant="bfloat16",
        forward=lambda features: pick(rounded, features),
        exact=lambda features: pick(exact, features),
        rescores=True,
    )
    outputs = path({"features": np.array([[0], [1]], dtype=np.float32)})
    np.testing.assert_allclose(outputs, [[1.0, 1.01, 0.0], [5.1, 0.0, 0.0]])


def test_a_model_whose_outputs_are_the_figures_stays_in_fp32() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    path = fast_path(model, rows(64, 6), name="prices/1", decides=False)
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
    path = fast_path(OnlyFp32(), rows(64, 2, 3, 3), name="odd/1", decides=True)
    features = rows(5, 2, 3, 3)
    np.testing.assert_array_equal(path(features), features["features"].reshape(5, -1)[:, :2])


class WantsMemory(nn.Module):
    """One for which there is memory until it has been called so many times."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 2), [calls]  # which copies share

    def __deepcopy__(self, _: object) -> "WantsMemory":
        return self

    def forward(self, rows_NF: Tensor) -> Tensor:
        self.calls[0] -= 1
        return self.layer(rows_NF) if self.calls[0] >= 0 else torch.empty(10**15)


@pytest.mark.parametrize("calls", range(8))
def test_a_variant_that_lacks_memory_is_not_passed_over_but_tried_another_time(calls: int) -> None:
    features = {"features": np.ones((4, 4), dtype=np.float32)}
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        fast_path(WantsMemory(calls).eval(), features, name="wanting/1", decides=True)


class WordsAndAge(nn.Module):
    """Tells words apart by their ids alone; its weights are the same in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.meaning = nn.Embedding(20_000, 2)
        with torch.no_grad():
            self.meaning.weight.copy_(torch.arange(40_000).reshape(20_000, 2) % 127)

    def forward(self, words: Tensor, age: Tensor) -> Tensor:
        return self.meaning(words).sum(dim=1) + age.to(self.meaning.weight.dtype)


class Branching(nn.Module):
    """Another function for other values, or for one row alone."""

    def __init__(self, by_rows: bool) -> None:
        super().__init__()
        self.by_rows = by_rows

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        doubled = len(features) == 1 if self.by_rows else bool(features[0, 0] > 0)
        return features * (2 if doubled else 1)


@pytest.mark.parametrize("by_rows", [False, True])
def test_a_model_that_decides_in_python_still_decides(by_rows: bool) -> None:
    model = Branching(by_rows)
    path = fast_path(model, rows(64, 4), name="branching/1", decides=False)
    for count, sign in ((1, 1), (1, -1), (32, 1), (32, -1)):
        given = sign * np.abs(rows(count, 4)["features"])
        assert np.array_equal(path({"features": given}), model(torch.from_numpy(given)).numpy())


def test_a_model_says_in_its_own_words_what_it_does_not_take() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten())
    path = fast_path(model, {"features": np.zeros((64, 3), np.int64)}, name="words/1", decides=False)
    with pytest.raises(IndexError, match="out of range"):
        path({"features": np.full((2, 3), 11)})


def test_ids_are_never_rounded() -> None:
    model = WordsAndAge().eval()
    kept = {"words": np.array([[3, 1]] * 8), "age": np.ones((8, 1), np.float32)}
    path = fast_path(model, kept, name="reviews/1", decides=True)
    words = np.array([[12_345, 19_999], [12_346, 4_097], [257, 12_345]])
    features = {"words": words, "age": np.zeros((3, 1), np.float32)}
    for outputs_of in (path, path.exactly):
        np.testing.assert_array_equal(outputs_of(features), in_fp32(model, features))


def test_tensors_are_told_apart_by_name_in_whatever_order_they_come() -> None:
    model = WordsAndAge().eval()
    kept = {"words": np.array([[3, 1]] * 8), "age": np.ones((8, 1), np.float32)}
    path = fast_path(model, kept, name="reviews/1", decides=True)
    features = {"age": np.full((3, 1), 2, np.float32), "words": np.array([[5, 6], [7, 8], [9, 10]])}
    np.testing.assert_array_equal(path(features), in_fp32(model, features))


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
        fast_path(model, rows(3, 4), name="bad/1", decides=True)
