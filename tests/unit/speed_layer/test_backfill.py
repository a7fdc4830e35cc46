"""What a person is told of a backfill, and by which names it is asked for."""

import pytest
from typer.testing import CliRunner

from speed_layer.commands import _scored, speed


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ((68, 68, 68, 0), "scored again: 68 events"),
        ((68, 68, 60, 8), "scored again: 60 events; refused, and left as they were: 8"),
        ((68, 60, 60, 0), "scored again: 60 events; no longer there: 8"),
        ((68, 71, 70, 1), "scored again: 70 events; refused, and left as they were: 1"),
    ],
)
def test_a_backfill_tells_what_was_refused_from_what_went_or_came_meanwhile(
    figures: tuple[int, int, int, int], said: str
) -> None:
    assert _scored(*figures) == said


def test_a_backfill_is_listed_by_one_name_and_done_by_the_one_before_as_well() -> None:
    listed = CliRunner().invoke(speed, ["--help"]).output
    assert "backfill" in listed
    assert "replay" not in listed
    for name in ("backfill", "replay"):
        assert "Have the champion score events again" in CliRunner().invoke(speed, [name, "--help"]).output
