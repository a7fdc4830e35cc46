"""Which streams hang, and which only fail."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.service.heartbeat import last_heartbeat
from deeplambda.service.loops import Loop, LoopStatus
from deeplambda.service.streams import HUNG_AFTER_S, Stream, beat

LONG_AGO_S = 2 * HUNG_AFTER_S


def no_topic() -> Any:
    raise NotReady("Kafka has no topic")


def failing() -> Any:
    return SimpleNamespace(exception=lambda: NotReady("the model service is away"), stop=lambda: None)


@pytest.mark.parametrize("start", [no_topic, failing])
def test_a_stream_that_fails_again_and_again_does_not_hang(start: Any) -> None:
    stream = Stream("digits", "digits.events", start, progress_s=time.monotonic() - LONG_AGO_S)
    with pytest.raises(NotReady):
        stream.run(LoopStatus(), threading.Event())
    assert not stream.hangs


def test_a_part_beats_while_no_stream_hangs_however_lively_the_others_are(settings: Settings) -> None:
    lively = Stream("digits", "digits.events", no_topic)
    hung = Stream("fraud", "fraud.events", no_topic, progress_s=time.monotonic() - LONG_AGO_S)
    loops = {stream.application: Loop(stream.application, stream.run, threading.Event()) for stream in (lively, hung)}
    beat(settings, "stream", [(lively, loops["digits"]), (hung, loops["fraud"])], [])
    assert last_heartbeat(settings, "stream") is None
    beat(settings, "stream", [(lively, loops["digits"])], [])
    assert last_heartbeat(settings, "stream") is not None
