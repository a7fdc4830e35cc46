"""Trials are known again by what was drawn, also after JSON."""

import io

import pytest
from rich.console import Console

from batch_layer.console import TrialTable
from batch_layer.trials import Trial, key_of


def test_a_trial_is_known_again_from_its_json() -> None:
    trial = Trial(drawn={"learning_rate": 0.1 + 0.2, "sizes": (64, 32), "name": "größer"}, metrics=(0.5, 0.75))
    assert Trial.model_validate_json(trial.model_dump_json()).key == trial.key == key_of(trial.drawn)
    assert trial.epochs == 2


@pytest.mark.parametrize("other", [{"a": 1, "b": 3}, {"a": 1}, {"a": "1", "b": 2}])
def test_other_draws_have_other_keys(other: dict[str, object]) -> None:
    assert key_of({"b": 2, "a": 1}) == key_of({"a": 1, "b": 2})
    assert key_of(other) != key_of({"a": 1, "b": 2})


def test_what_follows_the_table_in_a_file_is_on_a_line_of_its_own() -> None:
    console = Console(file=io.StringIO())
    with TrialTable(console, "accuracy", "this machine"):
        pass
    console.print("the command")
    assert console.file.getvalue().splitlines()[-1] == "the command"  # type: ignore[attr-defined]
