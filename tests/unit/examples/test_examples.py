"""Each example on small generated rows: what it gives, whatever the batch, and that a model can be trained on it.

Legend: N rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from deeplambda.application import Application, payload_schema
from deeplambda.features import Tensor, call, declared
from deeplambda.learned import decode_state, encode_state
from examples.data import data_folder
from examples.digits.application import Digits
from examples.fraud.application import Fraud
from examples.measure import card_precision, read
from examples.sentiment.application import Sentiment
from examples.turbofan.application import Turbofan

EXAMPLES = Path(__file__).parents[3] / "examples"
LEARNING = (Sentiment, Turbofan, Fraud)
ROWS = 30


@dataclass(frozen=True)
class Small:
    """An example with its first rows. transform: with what it learned from the train split."""

    application: Any
    batch: pa.RecordBatch
    labels: Any
    transform: Callable[[pa.RecordBatch], Any]
    splits: dict[str, Any]


@pytest.fixture(scope="module", params=LEARNING, ids=lambda kind: kind.name)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    application = request.param()
    with pytest.MonkeyPatch.context() as patched:
        for name in ("POLARITY", "TURBOFAN", "TRANSACTIONS"):
            patched.delenv(f"DEEPLAMBDA_{name}_DIR", raising=False)
        folder, _ = data_folder(application.name, tmp_path_factory.mktemp("data"))
    splits = read(application, folder)
    table, labels = splits["train"]
    learned = application.fit(iter(table.drop_columns("event_id").to_batches(50)))
    state = decode_state(application.fit, encode_state(learned))
    (batch,) = table.select(payload_schema(application.event).names).combine_chunks().to_batches()
    return Small(
        application, batch.slice(0, ROWS), labels[:ROWS], lambda rows: application.transform(rows, state), splits
    )


def test_it_has_rows_to_learn_from_and_to_be_judged_by(small: Small) -> None:
    assert {"train", "test"} <= set(small.splits)
    assert all(len(labels) == len(table) > 0 for table, labels in small.splits.values())


def test_no_row_is_in_two_splits(small: Small) -> None:
    ids = [set(table["event_id"].to_pylist()) for table, _ in small.splits.values()]
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_rows_are_valid_events(small: Small) -> None:
    for row in small.batch.to_pylist():
        small.application.event.model_validate(
            row | {"event_id": "1", "occurred_at": "2018-07-25T00:00:00Z"}, strict=False
        )


def test_features_are_as_declared(small: Small) -> None:
    found = small.transform(small.batch)
    (wanted,) = declared(small.application.features).values()
    assert Tensor(found.dtype.name, found.shape[1:]) == wanted
    assert len(found) == ROWS
    assert np.isfinite(found).all()


def test_features_of_a_row_do_not_depend_on_its_batch(small: Small) -> None:
    one_by_one = [small.transform(small.batch.slice(n, 1)) for n in range(ROWS)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), small.transform(small.batch))


def test_a_model_learns_from_them(small: Small) -> None:
    torch.manual_seed(0)
    model = small.application.build_model()
    features, labels = torch.tensor(small.transform(small.batch)), torch.tensor(small.labels)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = small.application.objective.loss(call(model, {"features": features}), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("application", [*LEARNING, Digits], ids=lambda kind: kind.name)
def test_it_is_one_short_file(application: type[Application]) -> None:
    folder = EXAMPLES / application.name
    assert {file.name for file in folder.glob("*.py") if file.stat().st_size} == {"application.py"}
    assert len((folder / "application.py").read_text().splitlines()) <= 70


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [("perceptron", 7_850), ("mlp", 118_282), ("lenet-5", 61_706), ("cnn", 1_256_080)],
)
def test_digits_has_the_networks_of_the_literature(architecture: str, parameters: int) -> None:
    model = Digits().build_model(architecture=architecture)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_payment_knows_no_fraud_that_comes_after_it() -> None:
    def payment(second: int, **more: list[str]) -> pa.RecordBatch:
        paid_at = pa.array([second * 1_000_000], pa.timestamp("us", tz="UTC"))
        return pa.RecordBatch.from_pydict(
            {"paid_at": paid_at, "customer": [1], "terminal": [7], "amount": [10.0]} | more
        )

    known = Fraud().fit(iter([payment(100, label=["1"])]))
    before, same, after = (Fraud().transform(payment(second), known)[0, 4] for second in (99, 100, 101))
    assert before == same == 0 < after


def test_card_precision_looks_at_a_found_customer_once() -> None:
    noon_us, day_us = 12 * 3600 * 1_000_000, 24 * 3600 * 1_000_000
    paid_at = pa.array([noon_us, noon_us, noon_us + day_us, noon_us + day_us], pa.timestamp("us", tz="UTC"))
    test = pa.table({"paid_at": paid_at, "customer": [1, 2, 1, 3], "label": ["1", "0", "1", "1"]})
    outputs_NC = np.array([[0, 9], [0, 1], [0, 9], [0, 1]], np.float32)
    assert card_precision(test, outputs_NC, top=1) == 1.0  # customer 1, and on the second day customer 3
