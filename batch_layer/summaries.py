"""What is kept of the rows that a version was judged by, so that live events can be compared with them: a histogram for
each of some columns, a few kilobytes in all.

Columns are a field's values where they are numbers or few texts; else numbers that say little of it each: a text's
length, an array's or an image's mean, deviation and the means of its parts. Legend: N rows, B bins.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Column = NDArray[np.float64] | NDArray[np.object_]
"""Of N rows: numbers, where a missing one is NaN, or texts and None."""

_BINS = 10
_VALUES_LIMIT = 30
_PARTS = 4
_COLUMNS_LIMIT = 64
"""Fields beyond are passed over: their tests would only weaken those of the others."""


class Histogram(BaseModel):
    """Counts by bin. edges: of numbers, between the bins; values: of texts, after which others share a bin. The last
    bin is of rows without a value."""

    model_config = ConfigDict(frozen=True)

    edges: list[float] | None = None
    values: list[str] | None = None
    counts: list[int] = []

    @classmethod
    def of(cls, column: Column) -> "Histogram | None":
        """Of reference rows: a tenth of the numbers in each bin, as far as they differ. None for many texts."""
        if column.dtype == object:
            values, counts = np.unique([text for text in column if text is not None], return_counts=True)
            if len(values) > _VALUES_LIMIT:
                return None
            empty = cls(values=[str(value) for value in values[np.argsort(-counts, kind="stable")]])
        else:
            there = column[~np.isnan(column.astype(float))]
            quantiles = np.quantile(there, np.linspace(0, 1, _BINS + 1)[1:-1]) if len(there) else []
            empty = cls(edges=np.unique(quantiles).tolist())
        return empty.model_copy(update={"counts": np.bincount(empty.bins(column), minlength=empty.size).tolist()})

    @property
    def size(self) -> int:
        """How many bins there are."""
        return len(self.edges or ()) + 2 if self.values is None else len(self.values) + 2

    def bins(self, column: Column) -> NDArray[np.intp]:
        """(N,): the bin of each row."""
        if self.values is not None:
            known = {value: n for n, value in enumerate(self.values)}
            found = [self.size - 1 if text is None else known.get(text, self.size - 2) for text in column]
            return np.array(found, np.intp)
        numbers_N = column.astype(float)
        binned_N = np.searchsorted(np.array(self.edges), numbers_N, side="right")
        return np.where(np.isnan(numbers_N), self.size - 1, binned_N)


class Reference(BaseModel):
    """By what is compared and by column, the histograms of the rows of `split` that a version was judged by."""

    model_config = ConfigDict(frozen=True)

    split: str
    rows: int
    inputs: dict[str, Histogram]
    predictions: dict[str, Histogram]
    accuracy: dict[str, Histogram]


def histograms(columns: Mapping[str, Column]) -> dict[str, Histogram]:
    """Of each column that has one."""
    found = {name: Histogram.of(column) for name, column in list(columns.items())[:_COLUMNS_LIMIT]}
    return {name: histogram for name, histogram in found.items() if histogram is not None}


def input_columns(payload: pa.RecordBatch) -> dict[str, Column]:
    """The columns that stand for N events."""
    return dict(of for field in payload.schema for of in _columns(field.name, payload[field.name]))


def prediction_columns(
    predictions: Sequence[str], confidences: Sequence[float | None], numbers: Sequence[float | None]
) -> dict[str, Column]:
    """The columns that stand for N predictions: the number where it is one, else the text; and the confidence."""
    texts_N, numbers_N = np.array(predictions, dtype=object), _numbers(numbers)
    said: dict[str, Column] = {"prediction": texts_N} if np.isnan(numbers_N).all() else {"value": numbers_N}
    confidence_N = _numbers(confidences)
    return said if np.isnan(confidence_N).all() else {**said, "confidence": confidence_N}


def accuracy_columns(right: Sequence[bool] | None, errors: Sequence[float] | None) -> dict[str, Column]:
    """The column that stands for how good N answers were: whether they were right, or by how much they were wrong."""
    if right is not None:
        return {"right": np.array(["yes" if each else "no" for each in right], dtype=object)}
    return {} if errors is None else {"error": np.array(errors, float)}


def _columns(name: str, array: pa.Array) -> Iterator[tuple[str, Column]]:
    kind = array.type
    if pa.types.is_struct(kind):
        for n, field in enumerate(kind):
            yield from _columns(f"{name}.{field.name}", pc.struct_field(array, n))
    elif pa.types.is_boolean(kind):
        texts = [None if value is None else str(value).lower() for value in array.to_pylist()]
        yield name, np.array(texts, dtype=object)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        yield name, _numbers(array.to_pylist())
    elif pa.types.is_string(kind):
        yield name, np.array(array.to_pylist(), dtype=object)
        yield f"{name}.length", _numbers(pc.utf8_length(array).to_pylist())
    elif pa.types.is_binary(kind):
        yield from _of_arrays(
            name, [None if raw is None else np.frombuffer(raw, np.uint8) for raw in array.to_pylist()]
        )
    elif pa.types.is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        yield from _of_arrays(name, [None if row is None else _numbers(row) for row in array.to_pylist()])
    elif pa.types.is_list(kind) or pa.types.is_map(kind):
        yield f"{name}.length", _numbers([None if row is None else len(row) for row in array.to_pylist()])


def _of_arrays(name: str, arrays: Sequence[NDArray[Any] | None]) -> Iterator[tuple[str, Column]]:
    """Mean, deviation, and length where that differs; of equal lengths the means of 16 parts too, which are squares
    where the length is a square's, as of an image."""
    sizes = {len(array) for array in arrays if array is not None}
    if len(sizes) != 1 or 0 in sizes:
        there = [np.full(1, np.nan) if array is None or not len(array) else array for array in arrays]
        yield f"{name}.mean", np.array([array.mean() for array in there])
        yield f"{name}.deviation", np.array([array.std() for array in there])
        yield f"{name}.length", np.array([np.nan if array is None else len(array) for array in arrays], float)
        return
    (size,) = sizes
    matrix_NS = np.stack([np.full(size, np.nan) if array is None else array for array in arrays]).astype(np.float32)
    yield f"{name}.mean", matrix_NS.mean(axis=1).astype(float)
    yield f"{name}.deviation", matrix_NS.std(axis=1).astype(float)
    side = isqrt(size)
    if side**2 == size and side >= _PARTS:
        for row, rows in enumerate(np.array_split(np.arange(side), _PARTS)):
            for column, columns in enumerate(np.array_split(np.arange(side), _PARTS)):
                chosen = (rows[:, None] * side + columns).ravel()
                yield f"{name}[{row},{column}]", matrix_NS[:, chosen].mean(axis=1).astype(float)
    elif size >= _PARTS**2:
        for part, chosen in enumerate(np.array_split(np.arange(size), _PARTS**2)):
            yield f"{name}[{part}]", matrix_NS[:, chosen].mean(axis=1).astype(float)


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], float)
