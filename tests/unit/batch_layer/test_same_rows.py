"""What a champion of other code is given and asked, so that it can be judged on the candidate's rows."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batch_layer.same_rows import as_payload_of, deciding_as, in_order
from deeplambda.application import Application, Event
from deeplambda.errors import BadInput
from deeplambda.objective import Classification, MultiLabel, Objective, Regression
from deeplambda.records.featurizer import Featurizer


class Seen(Event):
    amount: float
    country: str | None = None


class Payments(Application):
    name = "payments"
    event = Seen
    sources = ()
    objective = Regression()
    metrics = ("rmse",)
    hyperparameters = {}  # noqa: RUF012

    def transform(self, batch: pa.RecordBatch) -> Any:
        return batch["amount"].to_numpy()

    def build_model(self) -> Any: ...


CHAMPION = Featurizer(Payments(), code_version="c0de")


def test_a_champion_gets_its_own_columns_of_rows_that_have_others() -> None:
    rows = pa.RecordBatch.from_pydict({"currency": ["CHF"], "amount": pa.array([2], pa.int64())})
    given = as_payload_of(CHAMPION, rows)
    assert given.to_pylist() == [{"amount": 2.0, "country": None}]


@pytest.mark.parametrize(("column", "named"), [({"sum": [1.0]}, "no field 'amount'"), ({"amount": ["x"]}, "'amount'")])
def test_rows_that_a_champion_cannot_take_are_refused_with_the_field(column: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        as_payload_of(CHAMPION, pa.RecordBatch.from_pydict(column))


def test_a_class_that_the_champion_does_not_know_is_never_its_answer() -> None:
    logits = np.array([[1.0, 2.0], [0.0, -90.0]], np.float32)
    found = in_order(logits, Classification(("a", "b")), Classification(("b", "new", "a")))
    assert found[:, [2, 0]].tolist() == logits.tolist()
    assert found.argmax(axis=1).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (Regression(), Classification(("a", "b"))),
        (MultiLabel(("a", "b")), MultiLabel(("b", "a"))),
        (MultiLabel(("a", "b")), Classification(("a", "b"))),
    ],
)
def test_outputs_that_mean_something_else_are_not_compared(given: Objective, wanted: Objective) -> None:
    with pytest.raises(BadInput, match="the champion's objective is"):
        in_order(np.zeros((1, given.output_size), np.float32), given, wanted)


def test_a_champion_decides_by_its_own_rule() -> None:
    pair = Classification(("a", "b"))
    assert deciding_as(Classification(("a", "b"), threshold=0.2), pair).decided(np.array([[0.7, 0.3]])) == [1]
    assert pair.threshold is None
    assert deciding_as(Classification(("b", "a"), threshold=0.2), pair).decided(np.array([[0.7, 0.3]])) == [0]
    assert deciding_as(Regression(maximum=1.0), Regression()).numbers(np.array([5.0], np.float32)) == [1]
