"""Slices have one name, whether the gate compares on them or live accuracy is told by them."""

import pyarrow as pa
import pytest
from pydantic_core import to_json

from batch_layer.verdicts import slices_of
from serving_layer.query_service.slices import Counts, by_slice


@pytest.mark.parametrize(
    "values",
    [["b", "a"] * 100, [True, None] * 100, [1, 2, 3, 4] * 50, list(range(200)), [n / 7 for n in range(200)]],
    ids=["texts", "flags", "few integers", "many integers", "floats"],
)
def test_gate_and_live_accuracy_name_a_slice_alike(values: list[object]) -> None:
    of_gate = [name for name, _ in slices_of({"field": pa.chunked_array([values])})]
    live = by_slice([(to_json({"field": value}).decode(), Counts(labelled=1)) for value in values])
    assert sorted(of_gate) == sorted(name for name, _ in live)
    assert len(of_gate) > 1
