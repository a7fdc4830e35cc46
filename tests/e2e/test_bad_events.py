"""Each bad event is one dead letter with its reason and position; the good ones around it are scored."""

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from deeplambda.adapters.kafka import end_offsets
from deeplambda.config import Settings
from tests.traffic import dead_letters, digit_event, eventually, new_run, producer, realtime_ids


def test_bad_events_are_dead_letters_and_good_ones_are_scored(
    stack: Settings, champion: int, test_images: NDArray[np.uint8]
) -> None:
    run = new_run("amid")
    good = [digit_event(f"{run}-{n}", test_images[n]) for n in range(12)]
    bad = {
        "not_json": (b"bad-json", b"this is no JSON"),
        "not_utf8": (b"bad-utf8", b'{"event_id": "\xff"}'),
        "no_image": (b"bad-field", to_json({"event_id": "bad-field", "occurred_at": "2026-01-01T00:00:00Z"})),
        "wrong_type": (b"bad-type", to_json(good[0] | {"event_id": "bad-type", "image": 12})),
        "broken_image": (b"bad-image", to_json(good[0] | {"event_id": "bad-image", "image": "iVBORw0KGgo="})),
        "large": (b"bad-large", to_json(good[0] | {"event_id": "bad-large", "pad": "x" * 2_000_000})),
        "no_key": (None, to_json(good[0] | {"event_id": "bad-key"})),
    }
    expected = {
        "not_json": "not_json",
        "not_utf8": "not_json",
        "no_image": "missing_field",
        "wrong_type": "wrong_type",
        "broken_image": "bad_value",
        "large": "too_large",
        "no_key": "missing_key",
    }
    before = end_offsets(stack, "digits.dead-letters")
    sender, positions = producer(stack), {}
    for n, (kind, (key, value)) in enumerate(bad.items()):
        sender.send("digits.events", key=good[n]["event_id"].encode(), value=to_json(good[n]))
        stored = sender.send("digits.events", key=key, value=value).get(timeout=10)
        positions[stored.partition, stored.offset] = kind
    for event in good[len(bad) :]:
        sender.send("digits.events", key=event["event_id"].encode(), value=to_json(event))
    sender.flush()
    sender.close()

    assert eventually(lambda: len(realtime_ids(stack, run)) == len(good))
    assert eventually(lambda: len(dead_letters(stack, before)) >= len(bad))
    letters = {(letter["partition"], letter["offset"]): letter for letter in dead_letters(stack, before)}
    assert {positions[at]: letter["reason"] for at, letter in letters.items()} == expected
    assert realtime_ids(stack, "bad") == []
