"""Which failures of a generation are worth another attempt, and what people see of it."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from batch_layer.generation import is_final, parent_of
from batch_layer.generation_commands import table
from deeplambda.errors import BadInput, Conflict, DiskFull, NotReady, UnfitModel
from tests.unit.batch_layer.test_gate import card
from tests.unit.batch_layer.test_triggers import HOUR, ended


@pytest.mark.parametrize("error", [NotReady("Kafka"), DiskFull("S3"), Conflict("a lock"), RuntimeError("Spark's")])
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert not is_final(error)


@pytest.mark.parametrize("error", [BadInput("the transform refuses 6,000 rows"), UnfitModel("the loss is NaN")])
def test_what_would_end_the_same_way_is_not(error: Exception) -> None:
    assert is_final(error)


def test_weights_come_from_the_newest_champion_of_this_code_that_learned_nothing_which_was_taken_back() -> None:
    served = [card(4, 0.9), card(3, 0.9), card(2, 0.9, code_version="01d"), card(1, 0.9)]
    assert parent_of(served, set(), "c0de") == 4
    assert parent_of(served, {4}, "c0de") == 3
    assert parent_of(served, {3, 4}, "c0de") == 1
    assert parent_of(served, {1, 3, 4}, "c0de") is None
    assert parent_of([], set(), "c0de") is None


def test_a_generation_is_shown_with_its_reason_its_attempts_and_its_end() -> None:
    taken_up = replace(ended(ago=HOUR), attempts=2, verdict="the gate let it through")
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table([taken_up], "digits"))
    (row,) = [line for line in console.export_text().splitlines() if line.startswith("1")]
    for shown in ("labels: 10,000 new labels", "promoted", "judge, attempt 2", "the gate let it through"):
        assert shown in row
