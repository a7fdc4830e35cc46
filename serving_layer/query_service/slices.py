"""Counts of predictions by declared slice, from those of predictions that are equal in all of them. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic_core import from_json

from deeplambda.records.predictions import Slice
from deeplambda.records.slices import MOST_VALUES, quarter_edges, quarter_name, quarters_of, value_name


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of some predictions. labelled, unlabelled: whose truth is known, or not. correct: of those labelled. numbers:
    labelled ones that are numbers. error, squares: the sums of their errors and of the errors' squares."""

    labelled: int = 0
    unlabelled: int = 0
    correct: int = 0
    numbers: int = 0
    error: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def predictions(self) -> int:
        """All of them."""
        return self.labelled + self.unlabelled


def by_slice(groups: Iterable[tuple[str, Counts]]) -> list[tuple[str, Counts]]:
    """Each slice's name, as the gate gives it, and counts, where any truth is known: field by field, most first.

    groups: slices as the views keep them, with the counts of predictions that have them.
    """
    fields: dict[str, dict[Slice, Counts]] = defaultdict(lambda: defaultdict(Counts))
    for text, counts in groups:
        for field, value in from_json(text).items():
            # 1, 1.0 and true are one key of a dict
            fields[field][str(value) if isinstance(value, bool) else value] += counts
    return [
        (name, counts)
        for field, values in sorted(fields.items())
        for name, counts in sorted(_slices(field, values), key=lambda each: -each[1].predictions)
        if counts.labelled
    ]


def _slices(field: str, values: Mapping[Slice, Counts]) -> Iterator[tuple[str, Counts]]:
    numbers = {value: counts for value, counts in values.items() if isinstance(value, int | float)}
    if any(isinstance(value, float) for value in numbers) or len(numbers) > MOST_VALUES:
        yield from _quarters(field, numbers)
        return
    often = sorted(values.items(), key=lambda each: -each[1].predictions)[:MOST_VALUES]
    yield from ((value_name(field, value), counts) for value, counts in often)


def _quarters(field: str, numbers: Mapping[int | float, Counts]) -> Iterator[tuple[str, Counts]]:
    values_M = np.array(list(numbers), float)
    numbers_N = np.repeat(values_M, [counts.predictions for counts in numbers.values()])
    edges = quarter_edges(numbers_N)
    found: dict[int, Counts] = defaultdict(Counts)
    for quarter, counts in zip(quarters_of(values_M, edges), numbers.values(), strict=True):
        found[int(quarter)] += counts
    for n, counts in found.items():
        yield quarter_name(field, edges, n), counts
