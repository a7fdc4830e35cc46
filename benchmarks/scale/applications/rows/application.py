"""Generated rows of eight numbers, of two classes that a line parts."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deeplambda.application import Application, Event
from deeplambda.features import Tensor
from deeplambda.objective import Classification
from deeplambda.sources import ByHash, Parquet


class RowMeasured(Event):
    a: float
    b: float
    c: float
    d: float
    e: float
    f: float
    g: float
    h: float


class Rows(Application):
    name = "rows"
    event = RowMeasured
    sources = (Parquet("rows/*.parquet", label="class", event_id="id"),)
    splits = ByHash(train=0.9, test=0.1)
    features = Tensor("float32", (8,))
    objective = Classification(("below", "above"))
    metrics = "accuracy"
    hyperparameters = {"epochs": 1, "batch_size": 4096, "learning_rate": 1e-2, "weight_decay": 0.0}  # noqa: RUF012

    def transform(self, batch: pa.RecordBatch) -> NDArray[np.float32]:
        return np.stack([column.to_numpy() for column in batch.columns], axis=1).astype(np.float32)

    def build_model(self) -> Any:
        from torch import nn

        return nn.Linear(8, 2)
