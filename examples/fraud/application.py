"""Fraud: is a card payment a fraud? Told from the payment, its customer's habits and its terminal's past. Data and
split: Le Borgne et al., Reproducible Machine Learning for Credit Card Fraud Detection, chapter 3.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from deeplambda.application import EXPECTATIONS, Application, Choice, Event, Expect, LogUniform
from deeplambda.features import Tensor
from deeplambda.objective import Classification
from deeplambda.sources import ByTime, Parquet

_COLUMNS = {"paid_at": "TX_DATETIME", "customer": "CUSTOMER_ID", "terminal": "TERMINAL_ID", "amount": "TX_AMOUNT"}


class PaymentMade(Event):
    paid_at: datetime  # in UTC where it names no zone; a transform sees the payload alone, not occurred_at
    customer: int
    terminal: int
    amount: Annotated[float, Field(ge=0, le=1e6)]


class Known(BaseModel):  # of the training week: customers' median amounts, and when there were frauds at a terminal
    usual: dict[int, float]
    frauds: dict[int, list[int]]


class Fraud(Application):
    name = "fraud"
    event = PaymentMade
    sources = (Parquet("transactions.parquet", columns=_COLUMNS, label="TX_FRAUD", event_id="TRANSACTION_ID"),)
    splits = ByTime("TX_DATETIME", train=("2018-07-25", "2018-08-01"), test=("2018-08-08", "2018-08-15"))
    features = Tensor("float32", (7,))
    objective = Classification(("0", "1"), weights=(1.0, 10.0))  # as the file names them; one payment in 112 is a fraud
    metrics = ("average_precision", "roc_auc")  # of so few frauds, accuracy says nothing
    expectations = (*EXPECTATIONS, Expect("out_of_range", 0.001))  # else the amounts are in another currency
    hyperparameters = {"epochs": 8, "batch_size": 128, "learning_rate": 3e-3, "weight_decay": 0.01, "hidden": 32}  # noqa: RUF012
    search_space = {"learning_rate": LogUniform(3e-4, 1e-2), "hidden": Choice((16, 32, 64))}  # noqa: RUF012

    def fit(self, batches: Iterator[pa.RecordBatch]) -> Known:
        amounts, frauds = defaultdict(list), defaultdict(list)
        for row in (row for batch in batches for row in batch.to_pylist()):
            amounts[row["customer"]].append(row["amount"])
            if row["label"] == "1":
                frauds[row["terminal"]].append(int(row["paid_at"].timestamp()))
        usual = {customer: float(np.median(paid)) for customer, paid in amounts.items()}
        return Known(usual=usual, frauds={terminal: sorted(times) for terminal, times in frauds.items()})

    def transform(self, batch: pa.RecordBatch, known: Known) -> NDArray[np.float32]:
        customer, terminal, amount = (batch[name].to_numpy() for name in ("customer", "terminal", "amount"))
        paid_at = batch["paid_at"].cast(pa.int64()).to_numpy() // 1_000_000  # whole seconds since 1970
        usual = np.array([known.usual.get(c, paid) for c, paid in zip(customer, amount, strict=True)])
        # Frauds before the payment alone: its own label and those after it are not known when it is made.
        frauds = [bisect_left(known.frauds.get(t, ()), at) for t, at in zip(terminal, paid_at, strict=True)]
        night, weekend = paid_at % 86_400 < 6 * 3_600, (paid_at // 86_400 + 3) % 7 >= 5  # 1970 began on a Thursday
        scaled = (amount / 100, np.log1p(amount), np.log1p(amount) - np.log1p(usual), usual / 100, np.log1p(frauds))
        return np.column_stack([*scaled, night, weekend]).astype(np.float32)

    def build_model(self, *, hidden: int = 32) -> Any:
        from torch.nn import Linear, ReLU, Sequential

        return Sequential(Linear(7, hidden), ReLU(), Linear(hidden, hidden), ReLU(), Linear(hidden, 2))
