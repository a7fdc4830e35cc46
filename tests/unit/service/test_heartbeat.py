import json
from datetime import UTC, datetime, timedelta

import pytest

from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.service.heartbeat import last_heartbeat, last_states, probe_heartbeat, remove_heartbeat, write_heartbeat


def test_a_part_that_never_beat_is_unwell(settings: Settings) -> None:
    assert last_heartbeat(settings, "stream") is None
    with pytest.raises(NotReady, match="no heartbeat yet"):
        probe_heartbeat(settings, part="stream")


def test_a_recent_beat_is_well_and_tells_its_details(settings: Settings) -> None:
    write_heartbeat(settings, "stream", streams=2)
    assert probe_heartbeat(settings, part="stream") == "2 streams"


def test_an_old_beat_is_unwell(settings: Settings) -> None:
    write_heartbeat(settings, "stream")
    place = settings.data_dir / "run" / "stream.json"
    old = json.loads(place.read_text()) | {"at": (datetime.now(UTC) - timedelta(seconds=21)).isoformat()}
    place.write_text(json.dumps(old))
    with pytest.raises(NotReady, match="last heartbeat"):
        probe_heartbeat(settings, part="stream")


def test_a_new_start_does_not_live_on_the_beats_of_the_last(settings: Settings) -> None:
    write_heartbeat(settings, "stream")
    remove_heartbeat(settings, "stream")
    assert last_heartbeat(settings, "stream") is None


def test_a_part_is_well_and_names_the_application_that_fails_in_it(settings: Settings) -> None:
    states = {"digits": "running", "sentiment": "failing: sentiment has no champion"}
    write_heartbeat(settings, "stream", states=states)
    assert probe_heartbeat(settings, part="stream") == "sentiment fails"
    assert last_states(settings, "stream") == states
