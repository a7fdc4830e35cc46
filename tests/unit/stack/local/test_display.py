"""What a person sees on a terminal of 80 columns."""

import io

import pytest
from rich.console import Console

from deeplambda.stack.local.display import health_table, remarks
from deeplambda.stack.local.health import Health
from deeplambda.stack.local.parts import PARTS


def printed(found: list[Health]) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(health_table(found))
    for remark in remarks(found):
        console.print(remark, soft_wrap=True)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def health(part: str, **more: object) -> Health:
    known = {"health": "well", "note": "1,234,567 rows, 12 lag", "pid": 1234567, "address": "http://127.0.0.1:29999"}
    figures = {"memory_bytes": 2_000_000_000, "restarts": 12, "uptime_s": 400_000}
    return Health(part=part, **(known | figures | more))  # type: ignore[arg-type]


def test_the_table_shows_names_and_notes_whole() -> None:
    shown = printed([health(part.name) for part in PARTS])
    for part in PARTS:
        assert f"{part.name} " in shown
    assert shown.count("1,234,567 rows, 12 lag") == len(PARTS)
    assert "…" not in shown
    assert len(shown.splitlines()) == len(PARTS) + 1


@pytest.mark.parametrize("reason", ["sentiment has no champion; train one", "x" * 200, "[/] is no markup"])
def test_the_failing_application_is_named_with_its_reason(reason: str) -> None:
    states = {"digits": "running", "sentiment": f"failing: {reason}"}
    shown = printed([health("stream", note="sentiment fails", states=states)])
    assert f"stream: sentiment failing: {reason}" in shown
    assert "digits" not in shown


def test_why_a_part_is_unwell_is_said_below() -> None:
    note = "last heartbeat 0:12:34.123456 ago"
    assert f"views: {note}" in printed([health("views", health="unwell", note=note)])
