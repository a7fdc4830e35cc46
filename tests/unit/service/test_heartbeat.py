import json
from datetime import UTC, datetime, timedelta

import pytest

from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.service.heartbeat import beat, forget, heartbeat_of, last_beat


def test_a_part_that_never_beat_is_unwell(settings: Settings) -> None:
    assert last_beat(settings, "stream") is None
    with pytest.raises(NotReady, match="no sign of life yet"):
        heartbeat_of(settings, part="stream")


def test_a_recent_beat_is_well_and_tells_its_details(settings: Settings) -> None:
    beat(settings, "stream", streams=2)
    assert heartbeat_of(settings, part="stream") == "2 streams"


def test_an_old_beat_is_unwell(settings: Settings) -> None:
    beat(settings, "stream")
    place = settings.data_dir / "run" / "stream.json"
    old = json.loads(place.read_text()) | {"at": (datetime.now(UTC) - timedelta(seconds=21)).isoformat()}
    place.write_text(json.dumps(old))
    with pytest.raises(NotReady, match="last sign of life"):
        heartbeat_of(settings, part="stream")


def test_a_new_start_does_not_live_on_the_beats_of_the_last(settings: Settings) -> None:
    beat(settings, "stream")
    forget(settings, "stream")
    assert last_beat(settings, "stream") is None
