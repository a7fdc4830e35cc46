"""A model that begins from another's weights is that model, but for a head of other outputs."""

import pytest
import torch
from torch import Tensor, nn

from deeplambda.errors import BadInput
from deeplambda.state.weights import begin_with, encoded_weights


def network(outputs: int, seed: int, hidden: int = 8) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_model_of_the_same_form_takes_every_tensor() -> None:
    model, other = network(3, seed=1), network(3, seed=2)
    assert begin_with(model, encoded_weights(other), "it/2", heads=(3, 3)) == ()
    assert all(torch.equal(tensor, tensors(other)[name]) for name, tensor in model.state_dict().items())


def test_a_head_for_other_classes_stays_as_it_was_made_and_is_named() -> None:
    model, other = network(5, seed=1), network(3, seed=2)
    fresh = tensors(model)
    assert begin_with(model, encoded_weights(other), "it/2", heads=(5, 3)) == ("3.weight", "3.bias")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name.startswith("3.") else tensors(other)[name]), name


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.outward.weight = self.inward.weight


def test_tied_weights_are_taken_once_for_both() -> None:
    model, other = Tied(), Tied()
    assert begin_with(model, encoded_weights(other), "it/2", heads=(6, 6)) == ()
    assert torch.equal(model.inward.weight, other.inward.weight)
    assert model.inward.weight is model.outward.weight


@pytest.mark.parametrize(
    "other", [network(3, seed=2, hidden=16), network(4, seed=2), nn.Linear(4, 3), nn.Sequential(network(3, seed=2))]
)
def test_a_model_that_differs_elsewhere_is_refused_and_nothing_is_taken(other: nn.Module) -> None:
    model = network(3, seed=1)
    fresh = tensors(model)
    with pytest.raises(BadInput, match=r"the model of it/2 is another one: the two differ in .*; begin from a version"):
        begin_with(model, encoded_weights(other), "it/2", heads=(3, 3))
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in model.state_dict().items())
