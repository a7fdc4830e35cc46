"""Nothing that a producer wrote steers the terminal of who looks at it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from deeplambda.records.shown import as_json, plain, shown

HARM = "\x1b]0;title\x07\x1b[2J\x9b31m\u202eevil\u2066\x7f\r\udcff"
"""A window's title, a cleared screen, a colour by one character, text from right to left, a line begun anew."""


def printed(what: object) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    console.print(what, highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_steers_a_terminal_is_escaped() -> None:
    assert plain(HARM).isprintable()
    assert plain(HARM).startswith("\\u001b]0;title\\u0007\\u001b[2J\\u009b31m\\u202eevil")


@pytest.mark.parametrize("text", ["größer", "東京", "می‌خواهم", "क्‍ष", "👩‍👩‍👧", "two\nlines\tand a tab", "a  b", ""])
def test_texts_of_all_scripts_stay_what_they_are(text: str) -> None:
    assert plain(text) == text


def test_a_table_shows_it_without_its_effect() -> None:
    table = Table("label", box=None, show_header=False)
    table.add_row(shown(HARM + "[red]not red[/]"))
    assert printed(table).strip() == plain(HARM) + "[red]not red[/]"


def test_nothing_is_given_to_rich_by_another_way() -> None:
    root = Path(__file__).parents[3]
    folders = [root / folder for folder in ("src", "batch_layer", "speed_layer", "serving_layer")]
    code = [path for folder in folders for path in folder.rglob("*.py")]
    assert [path.name for path in code if "from rich.markup" in path.read_text()] == ["shown.py"]


def test_json_that_is_shown_has_the_value() -> None:
    value = {"key": HARM, "ü": [1, None]}
    found = printed(as_json(value))
    assert not set(HARM) & {"\x1b", "\x9b", "\u202e"} & set(found)
    assert json.loads(found) == value
