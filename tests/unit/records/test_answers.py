"""A row whose outputs say nothing has no answer; the rows around it have theirs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deeplambda.errors import InvalidEvent
from deeplambda.objective import Classification, Predictions
from deeplambda.records.answers import answers


class Says:
    """Decodes each row's number to the value of that number."""

    output_size = 1

    def __init__(self, *values: Any) -> None:
        self.values = values

    def loss(self, outputs: Any, labels_N: Any) -> Any:
        raise NotImplementedError

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        raise NotImplementedError

    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        found = [self.values[int(number)] for number in outputs[:, 0]]
        if KeyError in found:
            raise KeyError("no such class")
        return Predictions(values=found, confidence_N=np.full(len(found), np.nan))


OUTPUTS = np.arange(4, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("x" * 256, "256 characters, 255 are the limit"),
        (7, "int, not text"),
        ("\ud800", "UTF-8"),
        (KeyError, r"KeyError: 'no such class' \(test_answers.py, line \d+\)"),
    ],
)
def test_a_row_without_an_answer_is_named_and_the_others_have_theirs(value: Any, named: str) -> None:
    found = answers(Says("a", "b" * 255, value, "d"), OUTPUTS)
    assert (found.rows_N, found.values_N) == ([0, 1, 3], ["a", "b" * 255, "d"])
    assert list(found.refused) == [2]
    with pytest.raises(InvalidEvent, match=f"row 2: .*{named}"):
        found.all()


class TooFew(Says):
    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        return Predictions(values=[], confidence_N=np.zeros(0))


def test_an_objective_that_leaves_rows_out_answers_none() -> None:
    assert set(answers(TooFew(), OUTPUTS).refused) == {0, 1, 2, 3}


def test_a_sound_objective_answers_all() -> None:
    found = answers(Classification("ab"), np.array([[2, 0], [0, 3]], np.float32)).all()
    assert found.values == ["a", "b"]
    np.testing.assert_allclose(found.confidence_N, [0.881, 0.953], atol=1e-3)


def test_no_rows_have_no_answers() -> None:
    assert answers(Classification("ab"), np.zeros((0, 2), np.float32)).all().values == []
