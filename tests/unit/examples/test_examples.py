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
from deeplambda.features import Features, call, checked, concatenated, declared, finite_rows
from deeplambda.learned import decode_state, encode_state
from examples.data import data_folder
from examples.digits.application import Digits
from examples.fraud.application import Fraud
from examples.measure import Line, card_precision, folded, read, table
from examples.published import PUBLISHED
from examples.sentiment.application import Sentiment
from examples.turbofan.application import Turbofan

EXAMPLES = Path(__file__).parents[3] / "examples"
LEARNING = (Sentiment, Turbofan, Fraud)
ROWS = 30


@dataclass(frozen=True)
class Small:
    """An example with its first rows. transform: with what it learned from the train split, tensors by name."""

    application: Any
    batch: pa.RecordBatch
    labels: Any
    transform: Callable[[pa.RecordBatch], Features]
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

    def transform(rows: pa.RecordBatch) -> Features:
        return checked(application.transform(rows, state), len(rows), declared(application.features))

    return Small(application, batch.slice(0, ROWS), labels[:ROWS], transform, splits)


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
    assert finite_rows(small.transform(small.batch), ROWS).all()


def test_features_of_a_row_do_not_depend_on_its_batch(small: Small) -> None:
    one_by_one = concatenated([small.transform(small.batch.slice(n, 1)) for n in range(ROWS)])
    for name, array in small.transform(small.batch).items():
        np.testing.assert_array_equal(one_by_one[name], array)


@pytest.mark.slow
def test_a_model_learns_from_them(small: Small) -> None:
    torch.manual_seed(0)
    model = small.application.build_model()
    features = {name: torch.tensor(array) for name, array in small.transform(small.batch).items()}
    labels = torch.tensor(small.labels)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = small.application.objective.loss(call(model, features), labels)
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


def test_sentiment_trains_its_networks_alone_and_lets_naive_bayes_judge_with_them() -> None:
    torch.manual_seed(0)
    model, words = Sentiment().build_model(naive_bayes=0.5), torch.ones(1, 40, dtype=torch.int64)
    outputs = [model.eval()(words, torch.tensor([evidence])) for evidence in (0.0, 4.0)]
    assert torch.allclose(outputs[1] - outputs[0], torch.tensor([[-1.0, 1.0]]))
    model.train()
    torch.manual_seed(1)
    once = model(words, torch.tensor([0.0]))
    torch.manual_seed(1)
    assert torch.equal(model(words, torch.tensor([4.0])), once)


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


def test_each_row_is_a_test_row_of_one_fold_and_trains_the_others() -> None:
    splits = {
        name: (pa.table({"text": texts}), np.array(labels))
        for name, texts, labels in (("train", ["a", "b", "c"], [0, 1, 0]), ("test", ["d", "e"], [1, 0]))
    }
    label_of = {"a": 0, "b": 1, "c": 0, "d": 1, "e": 0}
    tested = []
    for division in folded(splits, 2):
        found = {
            name: dict(zip(of["text"].to_pylist(), labels, strict=True)) for name, (of, labels) in division.items()
        }
        assert found["train"] | found["test"] == label_of
        assert not found["train"].keys() & found["test"].keys()
        tested += found["test"]
    assert sorted(tested) == list(label_of)


def test_the_table_names_the_nearest_published_figure_and_fits_80_columns() -> None:
    lines = [Line(label, 1_256_080, metric, (0.98765, 0.91, 0.95)) for label, metric in PUBLISHED]
    text = table([*lines, Line("digits lenet-5", 61_706, "negative_log_loss", (-0.0273, -0.03))])
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.startswith("sentiment"))
    assert row.split() == ["sentiment", "1,256,080", "accuracy", "0.9492", "±", "0.0965", "0.761"]
    assert "CNN-rand: Kim 2014" in " ".join(text.split())
