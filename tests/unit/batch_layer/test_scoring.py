"""Bulk scoring: a batch of more rows than one pass through the model takes."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from batch_layer.recompute import _PASS_ROWS, model_outputs
from deeplambda.objective import Regression
from deeplambda.records.answers import answered

ROWS = 2 * _PASS_ROWS + 40
FEATURES = {"features": np.arange(ROWS, dtype=np.float32)[:, None]}


class Fussy(nn.Module):
    """Gives its input back, and has no answer for one number."""

    def forward(self, features_N1: torch.Tensor) -> torch.Tensor:
        if bool((features_N1 == _PASS_ROWS + 1).any()):
            raise ValueError("I do not like this one")
        return features_N1


def test_every_row_of_several_passes_has_the_answer_of_its_own_place() -> None:
    found = answered(partial(model_outputs, nn.Identity()), Regression(), FEATURES)
    assert found.rows_N == list(range(ROWS))
    assert found.numbers_N == list(range(ROWS))


def test_of_the_pass_in_which_the_model_fails_only_the_culprit_is_refused() -> None:
    found = answered(partial(model_outputs, Fussy()), Regression(), FEATURES)
    others = [row for row in range(ROWS) if row != _PASS_ROWS + 1]
    assert list(found.rows_N) == others
    assert found.numbers_N == pytest.approx(others)
    assert "I do not like this one" in found.refused[_PASS_ROWS + 1].message
