"""The shard: one partition of a prepared data set, as one safetensors object on S3.

Numpy alone, for it runs inside Spark's workers. Legend: N rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load, save

from deeplambda.errors import BadInput, CorruptObject
from deeplambda.features import Features, finite_rows
from deeplambda.records.lifecycle import PartitionPrepared

_FEATURE, _LABELS = "feature.", "labels"
SHARD_FORMAT = 6
"""Part of a data set's id: what was prepared in another form is prepared again, and its learned state learned anew. It
is raised when the platform makes other features, labels or learned state of equal rows, which a test notices
(`test_prepared_content.py`)."""

MANIFEST = TypeAdapter(list[PartitionPrepared])
"""What the manifest of a data set holds, as JSON."""


SHARD, ANNOUNCEMENT, PAYLOAD = ".safetensors", ".announcement.json", ".arrow"
"""How the keys of shards, announcements and payloads end."""


def prepared_prefix(application: str, dataset: str) -> str:
    """What the keys of all that is kept of a data set begin with."""
    return f"{application}/prepared/{dataset}/"


def shard_key(application: str, dataset: str, split: str, partition: int) -> str:
    """Where a shard is kept."""
    return f"{prepared_prefix(application, dataset)}{split}-{partition:05}{SHARD}"


def announcement_key(application: str, dataset: str, split: str, partition: int) -> str:
    """Where what was announced of a shard is kept: it exists once the shard does and Kafka knows of it."""
    return f"{prepared_prefix(application, dataset)}{split}-{partition:05}{ANNOUNCEMENT}"


def manifest_key(application: str, dataset: str) -> str:
    """Where the list of a whole data set's `PartitionPrepared` records is kept: it exists once all of them do."""
    return f"{prepared_prefix(application, dataset)}manifest.json"


def data_set_key(application: str, dataset: str) -> str:
    """Where it is kept what a prepared data set was made of."""
    return f"{prepared_prefix(application, dataset)}data_set.json"


def state_key(application: str, dataset: str) -> str:
    """Where a data set's learned state is kept."""
    return f"{prepared_prefix(application, dataset)}state"


def payload_key(application: str, dataset: str, split: str, partition: int) -> str:
    """Where the payloads of a shard's rows are kept, as Arrow: of the splits `test` and `recent`, for other versions
    are judged by the same rows."""
    return f"{prepared_prefix(application, dataset)}{split}-{partition:05}{PAYLOAD}"


def write_shard(features: Features, labels_N: NDArray[Any]) -> bytes:
    """A shard of N rows; equal rows give equal bytes.

    features: none when N is 0. labels_N: what `Objective.label_array` gives.
    Raises: BadInput when the two do not belong together or a feature is not finite.
    """
    rows = len(labels_N)
    for name, array in features.items():
        if len(array) != rows:
            raise BadInput(f"{len(array)} rows of features {name!r} but {rows} labels", "label every row")
    if not (finite_N := finite_rows(features, rows)).all():
        raise BadInput(
            f"the transform returned features that are not finite for {(~finite_N).sum()} rows, the first is row "
            f"{int(np.flatnonzero(~finite_N)[0])}",
            "fix the transform, or refuse such events in the schema",
        )
    tensors = {f"{_FEATURE}{name}": np.ascontiguousarray(array) for name, array in features.items()}
    content: bytes = save(tensors | {_LABELS: np.ascontiguousarray(labels_N)})
    return content


def read_shard(raw: bytes, name: str = "shard") -> tuple[Features, NDArray[Any]]:
    """Features by name and labels, (N,) or (N, L), of a shard. Raises: CorruptObject; `name` says of which object."""
    remedy = "prepare the data set again: 'deeplambda batch prepare'"
    try:
        tensors = load(raw)
    except (SafetensorError, ValueError, KeyError) as exc:  # KeyError: a dtype that numpy has not
        raise CorruptObject(f"{name} is not a whole safetensors file: {exc}", remedy) from exc
    labels_N = tensors.pop(_LABELS, None)
    if labels_N is None or not all(key.startswith(_FEATURE) for key in tensors):
        raise CorruptObject(f"{name} holds the tensors {sorted(tensors)}, not features and labels", remedy)
    features = {key.removeprefix(_FEATURE): array for key, array in tensors.items()}
    for key, array in features.items():
        if array.shape[:1] != labels_N.shape[:1]:
            raise CorruptObject(f"{name} holds features {key!r} {array.shape} and labels {labels_N.shape}", remedy)
    return features, labels_N
