"""The shard: one partition of a prepared data set, as one safetensors object on S3.

Numpy alone, for it runs inside Spark's workers. Legend: N rows, … the shape of one row's features.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load, save

from deeplambda.errors import BadInput, CorruptObject
from deeplambda.records.lifecycle import PartitionPrepared

_FEATURES, _LABELS = "features", "labels"

MANIFEST = TypeAdapter(list[PartitionPrepared])
"""What the manifest of a data set holds, as JSON."""


def shard_key(application: str, dataset: str, split: str, partition: int) -> str:
    """Where a shard is kept."""
    return f"{application}/prepared/{dataset}/{split}-{partition:05}.safetensors"


def manifest_key(application: str, dataset: str) -> str:
    """Where the list of a whole data set's `PartitionPrepared` records is kept: it exists once all of them do."""
    return f"{application}/prepared/{dataset}/manifest.json"


def write_shard(features: NDArray[np.float32], labels_N: NDArray[Any]) -> bytes:
    """A shard of N rows; equal rows give equal bytes.

    features: (N, …). labels_N: what `Objective.label_array` gives.
    Raises: BadInput when the two do not belong together or a feature is not finite.
    """
    if features.dtype != np.float32 or features.ndim < 2:
        raise BadInput(
            f"the transform returned {features.dtype} of shape {features.shape}",
            "let it return float32 of shape (rows, …)",
        )
    if labels_N.shape != features.shape[:1]:
        raise BadInput(f"{len(features)} rows of features but labels of shape {labels_N.shape}", "label every row")
    if not np.isfinite(features).all():
        rows = np.flatnonzero(~np.isfinite(features).reshape(len(features), -1).all(axis=1))
        raise BadInput(
            f"the transform returned features that are not finite for {len(rows)} rows, the first is row {rows[0]}",
            "fix the transform, or refuse such events in the schema",
        )
    content: bytes = save({_FEATURES: np.ascontiguousarray(features), _LABELS: np.ascontiguousarray(labels_N)})
    return content


def read_shard(raw: bytes, name: str = "shard") -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Features (N, …) and labels (N,) of a shard. Raises: CorruptObject; `name` says of which object."""
    remedy = "prepare the data set again: 'deeplambda batch prepare'"
    try:
        tensors = load(raw)
    except (SafetensorError, ValueError, KeyError) as exc:  # KeyError: a dtype that numpy has not
        raise CorruptObject(f"{name} is not a whole safetensors file: {exc}", remedy) from exc
    if set(tensors) != {_FEATURES, _LABELS}:
        raise CorruptObject(f"{name} holds the tensors {sorted(tensors)}, not features and labels", remedy)
    features, labels_N = tensors[_FEATURES], tensors[_LABELS]
    if features.dtype != np.float32 or features.ndim < 2 or labels_N.shape != features.shape[:1]:
        raise CorruptObject(
            f"{name} holds features {features.dtype} {features.shape} and labels {labels_N.dtype} {labels_N.shape}",
            remedy,
        )
    return features, labels_N
