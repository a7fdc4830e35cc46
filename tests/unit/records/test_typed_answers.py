"""Numbers and scores come with the rows that they belong to, and what no table can hold is refused."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deeplambda.errors import InvalidEvent
from deeplambda.objective import SCORES_LIMIT, Classification, MultiLabel, Predictions, Regression
from deeplambda.records.answers import answers

ONE_ROW = np.zeros((1, 1), np.float32)


class Saying(Regression):
    """Decodes every row to one thing."""

    def __init__(self, **said: Any) -> None:
        super().__init__()
        self._said = {"values": ["x"], "confidence_N": np.array([0.5])} | said

    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        return Predictions(**self._said)


def test_a_regression_gives_numbers_and_no_scores() -> None:
    answered = answers(Regression(), np.array([[1.5], [2.5]], np.float32))
    assert (answered.values_N, answered.numbers_N, answered.scores_N) == (["1.5", "2.5"], [1.5, 2.5], [None, None])
    assert answered.all().number(1) == 2.5


def test_classes_and_labels_give_scores_and_no_numbers() -> None:
    for objective in (Classification(classes="ab"), MultiLabel(labels="ab")):
        answered = answers(objective, np.zeros((2, 2), np.float32))
        assert answered.numbers_N == [None, None]
        assert answered.scores_N == [{"a": 0.5, "b": 0.5}] * 2
        assert answered.all().number(0) is None


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"numbers_N": np.array([np.inf])}, "the number is inf"),
        ({"numbers_N": np.zeros(2)}, "numbers of shape"),
        ({"scores": []}, "0 scores for 1 rows"),
        ({"scores": [{"a": float("nan")}]}, "not a finite number"),
        ({"scores": [{1: 0.5}]}, "not a finite number by the name"),
        ({"scores": [{str(n): 0.0 for n in range(SCORES_LIMIT + 1)}]}, "are the limit"),
    ],
)
def test_what_no_table_holds_is_refused(said: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidEvent, match=why):
        answers(Saying(**said), ONE_ROW).all()
