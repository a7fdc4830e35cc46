"""Candidate and champion on the same rows: the test split of the candidate's data set, which lies on S3.

The features there are the candidate's. A champion of other code, or of another learned state, makes its own of the
payloads that lie beside them; what either has no features for, neither is judged by. Legend: N rows, C classes.
"""

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from batch_layer.compute import best_compute
from batch_layer.rows import Rows
from batch_layer.shard_format import MANIFEST, manifest_key, payload_key, read_shard
from batch_layer.trainer import outputs_of
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_schema
from deeplambda.config import Settings
from deeplambda.errors import BadInput, UnfitModel
from deeplambda.metrics import measured
from deeplambda.objective import Classification, Objective
from deeplambda.records.featurizer import Featurizer
from deeplambda.splits import TEST
from deeplambda.state.card import Card
from deeplambda.state.kept_rows import decode_payload
from deeplambda.state.versions import fetch_model, load_code

_UNKNOWN_CLASS = -50.0
"""A logit below the row's others: a class that the champion does not know is one that it never predicts."""

_AT_ONCE = 500
"""Rows that a transform gets in one call, as in preparation: it has a time limit for each."""

_log = logging.getLogger(__name__)


def on_same_rows(settings: Settings, candidate: Card, champion: Card, metric: str) -> tuple[float, float] | None:
    """The metric of candidate and champion, as the candidate's application measures it, taken now on the same rows.

    None, and a line in the log, when the champion cannot be judged by these rows: they lack a field that its event must
    have, its objective is another, or an artefact is no longer there. Raises: NotReady.
    """
    store, compute = ObjectStore(settings), best_compute()
    try:
        codes = [load_code(store, settings, card) for card in (candidate, champion)]
        ours, theirs = (code.featurizer for code in codes)
        cards = zip(codes, (candidate, champion), strict=True)
        models = [compute.place(fetch_model(store, code.application, card)) for code, card in cards]
        application, labels = codes[0].application, []
        outputs: tuple[list[NDArray[np.float32]], ...] = ([], [])
        for of_split in _test_rows(store, candidate, theirs if theirs.id != ours.id else None):
            labels.append(of_split[0].labels_N.numpy())
            for found, code, model, rows in zip(outputs, codes, models, of_split, strict=True):
                made = outputs_of(model, rows, compute.device)
                found.append(in_order(made, code.application.objective, application.objective))
        if not labels:
            raise BadInput(f"data set {candidate.dataset} of {candidate.application} has no test rows that both take")
        ours_N, theirs_N = (
            measured(application, np.concatenate(labels), np.concatenate(found))[metric] for found in outputs
        )
    except (BadInput, UnfitModel) as exc:
        _log.warning(
            "%s/%d and %d were not measured on the same rows: %s",
            *(candidate.application, candidate.version, champion.version, exc),
        )
        return None
    return ours_N, theirs_N


def _test_rows(store: ObjectStore, card: Card, other: Featurizer | None) -> Iterator[tuple[Rows, Rows]]:
    """The version's test rows, in pieces, with its own features and with those that `other` makes; None: alike."""
    shards = MANIFEST.validate_json(store.get(manifest_key(card.application, card.dataset)))
    for shard in sorted((each for each in shards if each.split == TEST), key=lambda each: each.partition):
        rows = Rows.of(*read_shard(store.get(shard.key, sha256=shard.sha256), shard.key))
        if not len(rows):
            continue
        if other is None:
            yield rows, rows
        else:
            payload = decode_payload(store.get(payload_key(card.application, card.dataset, TEST, shard.partition)))
            for first in range(0, len(rows), _AT_ONCE):
                found = other.isolated(as_payload_of(other, payload.slice(first, _AT_ONCE)))
                if found.rows_N:
                    passed = rows.chosen(first + torch.tensor(found.rows_N, dtype=torch.int64))
                    yield passed, Rows.of(found.features, passed.labels_N.numpy())


def as_payload_of(featurizer: Featurizer, payload: pa.RecordBatch) -> pa.RecordBatch:
    """N rows with the columns of another version's event: a field that they lack is null where it may be.

    Raises: BadInput.
    """
    columns = []
    for field in payload_schema(featurizer.application.event):
        if field.name in payload.schema.names:
            try:
                columns.append(payload[field.name].cast(field.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
                raise BadInput(f"field {field.name!r} is of another type than in the champion's event: {exc}") from exc
        elif field.nullable:
            columns.append(pa.nulls(len(payload), field.type))
        else:
            raise BadInput(f"the candidate's event has no field {field.name!r}, which the champion's must have")
    return pa.RecordBatch.from_arrays(columns, schema=payload_schema(featurizer.application.event))


def in_order(outputs: NDArray[np.float32], given: Objective, wanted: Objective) -> NDArray[np.float32]:
    """Outputs of a model with the objective `given` as one with `wanted` would give them: logits in its classes' order.

    Raises: BadInput when the two are not alike.
    """
    if isinstance(given, Classification) and isinstance(wanted, Classification) and given.classes != wanted.classes:
        logits_NC = np.full((len(outputs), len(wanted.classes)), outputs.min(axis=1, keepdims=True) + _UNKNOWN_CLASS)
        for n, name in enumerate(wanted.classes):
            if name in given.classes:
                logits_NC[:, n] = outputs[:, given.classes.index(name)]
        return logits_NC.astype(np.float32)
    ours, theirs = (_named(objective) for objective in (wanted, given))
    if ours != theirs:
        raise BadInput(f"the champion's objective is {theirs}, the candidate's {ours}")
    return outputs


def _named(objective: Objective) -> str:
    """What two objectives have in common when their outputs mean the same."""
    labels = ", ".join(getattr(objective, "labels", ()))
    return f"{type(objective).__name__} with {objective.output_size} outputs" + (f" for {labels}" if labels else "")
