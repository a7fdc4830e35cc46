"""Candidate and another version on the same rows: a split of the candidate's data set, which lies on S3.

The features there are the candidate's. A version of other code, or of another learned state, makes its own of the
payloads that lie beside them; what either has no features for, neither is judged by. Legend: N rows, C classes.
"""

import logging
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from batch_layer.compute import best_compute
from batch_layer.rows import Rows
from batch_layer.shard_format import MANIFEST, manifest_key, payload_key, read_shard
from batch_layer.trainer import outputs_of
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application, payload_schema
from deeplambda.config import Settings
from deeplambda.errors import BadInput, UnfitModel
from deeplambda.objective import Classification, Objective
from deeplambda.records.featurizer import Featurizer
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.splits import TEST
from deeplambda.state.card import Card
from deeplambda.state.kept_rows import decode_payload
from deeplambda.state.versions import fetch_model, load_code

_UNKNOWN_CLASS = -50.0
"""A logit below the row's others: a class that the other version does not know is one that it never predicts."""

_AT_ONCE = 500
"""Rows that a transform gets in one call, as in preparation: it has a time limit for each."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SameRows:
    """N rows of one split, as a candidate and another version answer them, both in the form of the candidate's outputs.

    application: the candidate's. other: the same, but that it decides as the other version does. slices: by declared
    field, the rows' values.
    """

    application: Application
    other: Application
    labels_N: NDArray[Any]
    ours_N: NDArray[np.float32]
    theirs_N: NDArray[np.float32]
    slices: dict[str, pa.ChunkedArray]


def on_same_rows(settings: Settings, candidate: Card, other: Card, split: str = TEST) -> SameRows | None:
    """What candidate and other version answer now to the rows of a split of the candidate's data set.

    None where the data set has no such split; and, with a line in the log, when the other cannot be judged by its rows:
    they lack a field that its event must have, its objective is another, or an artefact is no longer there.
    Raises: NotReady.
    """
    store, compute = ObjectStore(settings), best_compute(settings.device)
    try:
        shards = _shards(store, candidate, split)
        if not shards:
            return None
        codes = [load_code(store, settings, card) for card in (candidate, other)]
        ours, theirs = (code.featurizer for code in codes)
        cards = zip(codes, (candidate, other), strict=True)
        models = [compute.place(fetch_model(store, code.application, card)) for code, card in cards]
        application, labels = codes[0].application, []
        batch_size = min(card.hyperparameters["batch_size"] for card in (candidate, other))
        other_application = copy(application)
        vars(other_application)["objective"] = deciding_as(codes[1].application.objective, application.objective)
        outputs: tuple[list[NDArray[np.float32]], ...] = ([], [])
        sliced: list[pa.Table] = []
        for of_split in _rows(store, shards, theirs if theirs.id != ours.id else None, application.slices):
            labels.append(of_split.ours.labels_N.numpy())
            sliced.append(of_split.slices)
            of_both = (of_split.ours, of_split.theirs)
            for found, code, model, rows in zip(outputs, codes, models, of_both, strict=True):
                made = outputs_of(model, rows, compute.device, batch_size)
                found.append(in_order(made, code.application.objective, application.objective))
        if not labels:
            raise BadInput(f"data set {candidate.dataset} of {candidate.application} has no {split} row that both take")
    except (BadInput, UnfitModel) as exc:
        _log.warning(
            "%s/%d and %d were not measured on the same rows: %s",
            *(candidate.application, candidate.version, other.version, exc),
        )
        return None
    slices = pa.concat_tables(sliced) if application.slices else None
    return SameRows(
        application=application,
        other=other_application,
        labels_N=np.concatenate(labels),
        ours_N=np.concatenate(outputs[0]),
        theirs_N=np.concatenate(outputs[1]),
        slices={name: slices[name] for name in application.slices} if slices else {},
    )


class _Piece(NamedTuple):
    """Some rows with the features of either version. slices: columns of the declared fields."""

    ours: Rows
    theirs: Rows
    slices: pa.Table


def _shards(store: ObjectStore, card: Card, split: str) -> list[PartitionPrepared]:
    shards = MANIFEST.validate_json(store.get(manifest_key(card.application, card.dataset)))
    return sorted((each for each in shards if each.split == split and each.rows), key=lambda each: each.partition)


def _rows(
    store: ObjectStore, shards: Sequence[PartitionPrepared], other: Featurizer | None, slices: Sequence[str]
) -> Iterator[_Piece]:
    """The shards' rows, in pieces, with their own features and with those that `other` makes; None: alike."""
    for shard in shards:
        rows = Rows.of(*read_shard(store.get(shard.key, sha256=shard.sha256), shard.key))
        if other is None and not slices:
            yield _Piece(rows, rows, pa.table({}))
            continue
        payload = decode_payload(store.get(payload_key(shard.application, shard.dataset, shard.split, shard.partition)))
        sliced = pa.Table.from_batches([payload]).select(list(slices))
        if other is None:
            yield _Piece(rows, rows, sliced)
            continue
        for first in range(0, len(rows), _AT_ONCE):
            found = other.isolated(as_payload_of(other, payload.slice(first, _AT_ONCE)))
            if found.rows_N:
                rows_N = [first + n for n in found.rows_N]
                passed = rows.chosen(torch.tensor(rows_N, dtype=torch.int64))
                yield _Piece(passed, Rows.of(found.features, passed.labels_N.numpy()), sliced.take(rows_N))


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


def deciding_as(given: Objective, wanted: Objective) -> Objective:
    """`wanted` with the threshold or the bounds of `given`: what its version makes of its outputs is its own.

    A threshold is of the second of two classes; where classes differ, it is not carried over.
    """
    if type(given) is not type(wanted):
        return wanted
    rules = {name: getattr(given, name) for name in ("threshold", "minimum", "maximum") if hasattr(given, name)}
    if rules.get("threshold") is not None and getattr(given, "classes", ()) != getattr(wanted, "classes", ()):
        return wanted
    decides = copy(wanted)
    decides.__dict__ |= rules
    return decides


def _named(objective: Objective) -> str:
    """What two objectives have in common when their outputs mean the same."""
    labels = ", ".join(getattr(objective, "labels", ()))
    return f"{type(objective).__name__} with {objective.output_size} outputs" + (f" for {labels}" if labels else "")
