"""Which dead letters are meant, and what a person is told of a replay."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deeplambda.records.dead_letters import DeadLetter
from speed_layer.dead_letter_commands import _told
from speed_layer.dead_letter_replay import CHUNK, CHUNK_BYTES, Filter, Replayed, _chunks

AT = datetime(2026, 1, 2, 3, tzinfo=UTC)
LETTER = DeadLetter(
    application="digits",
    reason="bad_value",
    detail="too large",
    topic="digits.events",
    partition=0,
    offset=7,
    received_at=AT,
    dead_at=AT,
    model_version=3,
)


@pytest.mark.parametrize(
    ("given", "takes"),
    [
        ({}, True),
        ({"reason": "bad_value", "version": 3}, True),
        ({"reason": "not_json"}, False),
        ({"version": 2}, False),
        ({"since": AT, "until": AT + timedelta(seconds=1)}, True),
        ({"until": AT}, False),
        ({"since": AT + timedelta(seconds=1)}, False),
    ],
)
def test_all_that_is_given_must_hold_of_a_letter(given: dict[str, Any], takes: bool) -> None:
    assert Filter(**given).takes(LETTER) is takes


def test_a_letter_of_before_it_named_a_version_is_of_none() -> None:
    assert not Filter(version=3).takes(LETTER.model_copy(update={"model_version": None}))


def test_a_dry_run_says_what_would_be_sent_and_how() -> None:
    done = Replayed()
    done.sent.update(bad_value=3, not_json=1)
    done.left_out.update({"sent again before": 2})
    assert _told(done, "digits", sent=False).splitlines() == [
        "would be sent again: 4 events of digits",
        "  3 bad_value",
        "  1 not_json",
        "  left out: 2, sent again before",
        "the same command with --send sends them",
    ]
    assert _told(done, "digits", sent=True).startswith("sent again: 4 events")


def test_few_large_letters_or_many_small_ones_are_held_at_once() -> None:
    sizes = [1] * (CHUNK + 1) + [CHUNK_BYTES - 1, 1, 1, 2 * CHUNK_BYTES, 1]
    chunks = list(_chunks(LETTER.model_copy(update={"value_size_bytes": size}) for size in sizes))
    assert [[each.value_size_bytes for each in chunk] for chunk in chunks] == [
        [1] * CHUNK,
        [1, CHUNK_BYTES - 1],
        [1, 1],
        [2 * CHUNK_BYTES],
        [1],
    ]
