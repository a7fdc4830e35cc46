"""What others wrote, as a person's terminal may be given it: events, labels and predictions hold what their producers
chose, and a terminal obeys control characters. CSV and JSON for programs have the values as they are.
"""

import json
import unicodedata
from typing import Any

from rich.highlighter import JSONHighlighter
from rich.markup import escape
from rich.text import Text

_STEERING = {"Cc", "Cf", "Cs"}
"""Unicode's categories of control characters, of those that change how others look, and of halves of characters."""
_LET_THROUGH = "\n\t\u200c\u200d"
"""Persian, Hindi and emoji are written with the last two, which join and part letters."""


def plain(text: str) -> str:
    """With JSON's escapes in the place of what would steer the terminal: `\\u001b` for the escape character."""
    if text.isprintable():
        return text
    return "".join(
        json.dumps(each)[1:-1] if unicodedata.category(each) in _STEERING and each not in _LET_THROUGH else each
        for each in text
    )


def shown(text: str) -> str:
    """The same for Rich, to whom brackets mean nothing then."""
    return escape(plain(text))


def as_json(value: Any) -> Text:
    """What JSON can hold, in colours; a reader of it gets the value as it is."""
    return JSONHighlighter()(plain(json.dumps(value, indent=2, ensure_ascii=False)))
