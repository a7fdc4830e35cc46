"""The reference of a version: histograms of the rows that it was judged by, with its answers to them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from batch_layer.drift import compared
from batch_layer.rows import Rows
from batch_layer.shard_format import PAYLOAD, SHARD, prepared_prefix, read_shard
from batch_layer.summaries import (
    Column,
    Reference,
    accuracy_columns,
    histograms,
    input_columns,
    prediction_columns,
)
from batch_layer.trainer import EVALUATION_ROWS, outputs_of
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.metrics import right_rows
from deeplambda.objective import Regression
from deeplambda.records.answers import answers
from deeplambda.splits import RECENT, TEST
from deeplambda.state.kept_rows import decode_payload

_ROWS_LIMIT = 10_000
_RECENT_ROWS, _FEWEST_ROWS = 1_000, 100
"""From so many on, the newest labelled events are what live ones are compared with. From the second number on they are
where they show that the world has changed: few rows of today tell more of it than many of before."""
_CHANGED_AT = 0.001

Columns = Mapping[str, Mapping[str, Column]]
"""By what is compared, the columns that stand for some rows."""


def reference_of(
    store: ObjectStore, application: Application, dataset: str, model: torch.nn.Module, batch_size: int
) -> Reference | None:
    """Of a data set's newest labelled events or of its test split, whichever tells more of what is to come. None where
    it has rows of neither. Never of rows that the model has learned from. batch_size: that it was trained with."""
    recent, test = (_of_split(store, application, dataset, split, model, batch_size) for split in (RECENT, TEST))
    if recent is None or test is None:
        found, split = (test, TEST) if recent is None else (recent, RECENT)
        return None if found is None else made_reference(split, *found)
    (rows, of_recent), of_test = recent, made_reference(TEST, *test)
    enough = rows >= _RECENT_ROWS or (rows >= _FEWEST_ROWS and differs(of_test, of_recent))
    return made_reference(RECENT, *recent) if enough else of_test


def differs(reference: Reference, columns: Columns) -> bool:
    """Whether rows are unlike those of a reference, beyond chance in any of what is compared."""
    of_each = [[each.p for each in compared(getattr(reference, what), found)] for what, found in columns.items()]
    return any(p_K and min(p_K) * len(p_K) < _CHANGED_AT for p_K in of_each)


def _of_split(
    store: ObjectStore, application: Application, dataset: str, split: str, model: torch.nn.Module, batch_size: int
) -> tuple[int, Columns] | None:
    """How many rows, and their columns."""
    payloads, pieces = [], []
    for payload, rows in _first_rows(store, application.name, dataset, split):
        payloads.append(payload)
        pieces.append(rows)
        if sum(map(len, pieces)) >= _ROWS_LIMIT:
            break
    if not sum(map(len, pieces)):
        return None
    payload = pa.Table.from_batches(payloads).slice(0, _ROWS_LIMIT).combine_chunks().to_batches()[0]
    rows = Rows.joined(pieces, sum(map(len, pieces))).part(slice(0, _ROWS_LIMIT))
    return len(rows), columns_of(application, payload, rows, model, batch_size)


def _first_rows(
    store: ObjectStore, application: str, dataset: str, split: str
) -> Iterator[tuple[pa.RecordBatch, Rows]]:
    """Of each shard, as many as are looked at."""
    for found in store.list(f"{prepared_prefix(application, dataset)}{split}-"):
        if found.key.endswith(PAYLOAD):
            key = found.key.removesuffix(PAYLOAD) + SHARD
            payload = decode_payload(store.get(found.key), _ROWS_LIMIT)
            yield payload, Rows.of(*read_shard(store.get(key), key)).part(slice(_ROWS_LIMIT))


def columns_of(
    application: Application,
    payload: pa.RecordBatch,
    rows: Rows,
    model: torch.nn.Module,
    batch_size: int = EVALUATION_ROWS,
) -> Columns:
    """Of rows with their payloads; model: on the CPU. batch_size: that it was trained with."""
    outputs = outputs_of(model, rows, torch.device("cpu"), batch_size)
    found, labels = answers(application.objective, outputs), rows.labels_N.numpy()
    right_N = right_rows(application.objective, labels, outputs)
    errors: Any = None
    if isinstance(application.objective, Regression):
        errors = np.abs(application.objective.numbers(outputs) - labels)
    return {
        "inputs": input_columns(payload),
        "predictions": prediction_columns(found.values_N, found.confidence_N.tolist(), found.numbers_N),
        "accuracy": accuracy_columns(None if right_N is None else right_N.tolist(), errors),
    }


def made_reference(split: str, rows: int, columns: Columns) -> Reference:
    """The columns of so many rows as histograms."""
    return Reference(split=split, rows=rows, **{what: histograms(found) for what, found in columns.items()})
