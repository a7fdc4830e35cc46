"""The reference of a version: histograms of the rows that it was judged by, with its answers to them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from batch_layer.rows import Rows
from batch_layer.shard_format import PAYLOAD, SHARD, prepared_prefix, read_shard
from batch_layer.summaries import Reference, accuracy_columns, histograms, input_columns, prediction_columns
from batch_layer.trainer import outputs_of
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.metrics import right_rows
from deeplambda.objective import Regression
from deeplambda.records.answers import answers
from deeplambda.splits import RECENT, TEST
from deeplambda.state.kept_rows import decode_payload

_ROWS_LIMIT = 10_000
_RECENT_ROWS = 1_000
"""From so many on, the newest labelled events are what live ones are compared with; else the test split is."""


def reference_of(
    store: ObjectStore, application: Application, dataset: str, model: torch.nn.Module
) -> Reference | None:
    """Of a data set's newest labelled events where it has enough, for the world may have changed; else of its test
    split. None where it has rows of neither. Never of rows that the model has learned from."""
    for split, enough in ((RECENT, _RECENT_ROWS), (TEST, 1)):
        payloads, pieces = [], []
        for payload, rows in _shards(store, application.name, dataset, split):
            payloads.append(payload)
            pieces.append(rows)
            if sum(map(len, pieces)) >= _ROWS_LIMIT:
                break
        if sum(map(len, pieces)) >= enough:
            payload = pa.Table.from_batches(payloads).slice(0, _ROWS_LIMIT).combine_chunks().to_batches()[0]
            rows = Rows.joined(pieces, sum(map(len, pieces))).part(slice(0, _ROWS_LIMIT))
            return made_reference(application, split, payload, rows, model)
    return None


def _shards(store: ObjectStore, application: str, dataset: str, split: str) -> Iterator[tuple[pa.RecordBatch, Rows]]:
    for found in store.list(f"{prepared_prefix(application, dataset)}{split}-"):
        if found.key.endswith(PAYLOAD):
            key = found.key.removesuffix(PAYLOAD) + SHARD
            yield decode_payload(store.get(found.key)), Rows.of(*read_shard(store.get(key), key))


def made_reference(
    application: Application, split: str, payload: pa.RecordBatch, rows: Rows, model: torch.nn.Module
) -> Reference:
    """Of rows with their payloads; model: on the CPU."""
    outputs = outputs_of(model, rows, torch.device("cpu"))
    found, labels = answers(application.objective, outputs), rows.labels_N.numpy()
    right_N = right_rows(application.objective, labels, outputs)
    errors: Any = None
    if isinstance(application.objective, Regression):
        errors = np.abs(application.objective.numbers(outputs) - labels)
    said = prediction_columns(found.values_N, found.confidence_N.tolist(), found.numbers_N)
    return Reference(
        split=split,
        rows=len(rows),
        inputs=histograms(input_columns(payload)),
        predictions=histograms(said),
        accuracy=histograms(accuracy_columns(None if right_N is None else right_N.tolist(), errors)),
    )
