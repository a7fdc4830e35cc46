"""Commands that take applications by name, or all that are served."""

import pytest
from typer.testing import CliRunner

from batch_layer.commands import _wanted, batch
from deeplambda.config import load_settings
from deeplambda.errors import BadInput


@pytest.mark.parametrize("command", ["run", "recompute"])
@pytest.mark.parametrize("arguments", [[], ["digits", "--served"]])
def test_either_names_are_given_or_all_that_are_served(command: str, arguments: list[str]) -> None:
    done = CliRunner().invoke(batch, [command, *arguments])
    assert isinstance(done.exception, BadInput)
    assert "give their names, or --served" in str(done.exception)


def test_all_that_are_served_are_those_of_the_settings() -> None:
    assert _wanted(None, served=True) == load_settings().applications
    assert _wanted(["a", "b"], served=False) == ["a", "b"]
