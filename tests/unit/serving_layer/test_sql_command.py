"""What `deeplambda sql` shows of rows."""

import io

import pytest
from rich.console import Console

from serving_layer import commands

ANSWER = {
    "columns": [{"name": "label", "type": "varchar"}, {"name": "n", "type": "bigint"}],
    "rows": [["\x1b]0;owned\x07\x1b[2J[bold]cat[/]", 2], [None, 1]],
    **{"row_count": 2, "truncated": False, "store": "mysql", "elapsed_ms": 3.0},
}


def test_values_reach_the_terminal_without_what_steers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.StringIO()
    monkeypatch.setattr(commands, "console", Console(file=printed, width=100, force_terminal=True, color_system=None))
    commands._print_table(ANSWER)
    assert "\x1b]0;" not in printed.getvalue()
    assert "\x1b[2J" not in printed.getvalue()
    assert "\\u001b]0;owned\\u0007\\u001b[2J[bold]cat[/]" in printed.getvalue()
