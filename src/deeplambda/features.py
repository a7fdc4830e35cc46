"""Features: what a transform gives and a model takes. One array, or several by name, each with N rows.

An application whose transform returns a bare array has one tensor, named `features`. Legend: N rows, … one row's shape.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deeplambda.errors import BadInput

SINGLE = "features"
"""Name of the tensor of a transform that returns a bare array."""

Dtype = Literal["float32", "float16", "int64", "int32", "bool"]
_DTYPES = get_args(Dtype)
Features = dict[str, NDArray[Any]]
"""By name, arrays of N rows each."""
T = TypeVar("T")


class BadFeatures(BadInput):
    """What a transform raised, or gave where the contract asks for something else."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of the features; shape: of one row."""

    dtype: Dtype = "float32"
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype} of shape ({', '.join(map(str, ('N', *self.shape)))})"


Specification = Mapping[str, Tensor]


def declared(features: Tensor | Specification | None) -> Specification | None:
    """What an application's attribute `features` says, by name; None when it says nothing."""
    return {SINGLE: features} if isinstance(features, Tensor) else features


def specification(features: Features) -> dict[str, Tensor]:
    """The tensors that these arrays are of. Raises: BadFeatures for a dtype that no model takes."""
    for name, array in features.items():
        if array.dtype.name not in _DTYPES:
            raise BadFeatures(f"the transform gives {name!r} as {array.dtype}", f"give one of {', '.join(_DTYPES)}")
    return {name: Tensor(array.dtype.name, array.shape[1:]) for name, array in features.items()}  # type: ignore[arg-type]


def checked(given: Any, rows: int, wanted: Specification | None) -> Features:
    """What a transform gave for `rows` events, by name. wanted: None before the first batch, when any tensor will do.

    Raises: BadFeatures.
    """
    arrays = by_name(given)
    if not (arrays and all(isinstance(name, str) and name for name in arrays)):
        raise BadFeatures(f"the transform gives the tensors {list(arrays)}", "give at least one, named by text")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise BadFeatures(f"the transform gives {name!r} as {type(array).__name__}", "give NumPy arrays")
        if array.ndim == 0 or len(array) != rows:
            raise BadFeatures(
                f"the transform gives {name!r} of shape {array.shape} for {rows} events", "give one row for each event"
            )
    found = specification(arrays)
    if wanted is not None and found != dict(wanted):
        raise BadFeatures(
            f"the transform gives {listed(found)}, where {listed(wanted)} is declared or was trained on",
            "let it give what `features` declares, whatever the batch",
        )
    # As PyTorch and the wire want them: in this machine's byte order, row after row.
    return {name: np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")) for name, array in arrays.items()}


def finite_rows(features: Features, rows: int) -> NDArray[np.bool_]:
    """By row, whether every number of it is finite."""
    finite_N = np.ones(rows, dtype=bool)
    for array in features.values():
        if array.dtype.kind == "f":
            finite_N &= np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    return finite_N


def chosen(features: Features, rows: Any) -> Features:
    """Some rows: a slice, or what NumPy takes as an index."""
    return {name: array[rows] for name, array in features.items()}


def concatenated(pieces: Sequence[Features]) -> Features:
    """All rows of the pieces, in their order; no tensor when there is no piece."""
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}


def zero_features(tensors: Specification) -> Features:
    """Two rows of zeros, for versions from before real rows were kept; no trial of a model that was published since."""
    return {name: np.zeros((2, *tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def row_count(features: Mapping[str, Any]) -> int:
    """N."""
    return len(next(iter(features.values()))) if features else 0


def row_bytes(features: Features) -> int:
    """Bytes of one row of all tensors."""
    return sum(array.nbytes // max(1, len(array)) for array in features.values())


def by_name(given: Any) -> dict[str, Any]:
    """What an application's method gives: arrays or tensors by name, or a bare one."""
    return dict(given) if isinstance(given, Mapping) else {SINGLE: given}


def as_taken(tensors: Mapping[str, T]) -> T | Mapping[str, T]:
    """As an application's hooks take features: the one tensor, or tensors by name."""
    return tensors[SINGLE] if set(tensors) == {SINGLE} else tensors


def call(model: Callable[..., T], tensors: Mapping[str, Any]) -> T:
    """Call a model as the contract says: with the one tensor, or with each by its name."""
    return model(tensors[SINGLE]) if set(tensors) == {SINGLE} else model(**tensors)


def padded(lists: pa.Array | Sequence[Any], length: int, dtype: Dtype = "int64", fill: float = 0) -> NDArray[Any]:
    """Ragged lists as one array (N, length): longer ones are cut, shorter ones filled up, a null is an empty one.

    lists: N lists of numbers, as an Arrow list column or in Python.
    """
    if isinstance(lists, (pa.Array, pa.ChunkedArray)):
        lists = lists.to_pylist()
    array = np.full((len(lists), length), fill, dtype=dtype)
    for row, values in enumerate(lists):
        kept = (values or ())[:length]
        array[row, : len(kept)] = kept
    return array


def listed(tensors: Specification) -> str:
    """For a message."""
    return ", ".join(f"{name!r} {tensor}" for name, tensor in tensors.items()) or "no tensor"
