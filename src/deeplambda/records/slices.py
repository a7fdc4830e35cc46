"""Names of slices, which the gate and live accuracy give alike: a value of a field, or a quarter of its numbers."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_VALUES = 20
"""Of a field: those with the most rows. More integers than that are divided into quarters, as floats are."""


def value_name(field: str, value: object) -> str:
    """The slice of the rows with this value."""
    return f"{field}={value}"


def quarter_edges(numbers_N: NDArray[Any]) -> NDArray[np.float64]:
    """What divides numbers, NaN left out, into quarters: three edges, or fewer where many numbers are equal."""
    return np.unique(np.nanquantile(numbers_N, [0.25, 0.5, 0.75]))


def quarters_of(numbers_N: ArrayLike, edges: NDArray[np.float64]) -> NDArray[np.intp]:
    """By number, in which quarter it is, from 0 to as many as there are edges."""
    return np.searchsorted(edges, numbers_N, side="right")


def quarter_name(field: str, edges: NDArray[np.float64], quarter: int) -> str:
    """The slice of the rows whose number is in this quarter."""
    bounds = (-math.inf, *edges, math.inf)
    return f"{field} in [{bounds[quarter]:g}, {bounds[quarter + 1]:g})"
