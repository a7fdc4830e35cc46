"""Keep the real-time view, and with it metrics, outbox and trimming: `python -m serving_layer.views`."""

import logging
import signal
import sys
import threading
from functools import partial
from typing import Any

from deeplambda.config import load_settings
from deeplambda.errors import DeepLambdaError
from deeplambda.service import outbox_relay
from deeplambda.service.heartbeat import write_heartbeat
from deeplambda.service.logs import log_to_stderr
from deeplambda.service.loops import Loop
from serving_layer.views import metrics, realtime, trim

_BEAT_S = 2.0
_STOP_WITHIN_S = 10.0
_LONGEST_PAUSE_S = 5.0  # these loops wait for Kafka and MySQL, and should go on soon after those are back

_log = logging.getLogger("serving_layer.views")


def _details(loops: list[Loop]) -> dict[str, Any]:
    details = {name: value for loop in loops for name, value in loop.status.details.items()}
    waiting = [loop.name for loop in loops if loop.status.waits_for]
    return details | ({"waiting": ", ".join(waiting)} if waiting else {})


def main() -> None:
    """Run the four loops until SIGTERM. One that fails is started again, and the heartbeat says which and why."""
    log_to_stderr()
    for noisy in ("kafka", "sqlalchemy.pool"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # the loops say what they wait for
    settings, stop = load_settings(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    loops = [
        Loop(module.__name__.rpartition(".")[2], partial(module.run, settings), stop, longest_pause_s=_LONGEST_PAUSE_S)
        for module in (realtime, metrics, outbox_relay, trim)
    ]
    for loop in loops:
        loop.start()
    while not stop.wait(_BEAT_S):
        if not any(loop.status.stuck for loop in loops):
            states = {loop.name: loop.status.state for loop in loops}
            write_heartbeat(settings, "views", states=states, **_details(loops))
    for loop in loops:
        loop.join(_STOP_WITHIN_S / len(loops))
    _log.info("stopped")


if __name__ == "__main__":
    try:
        main()
    except DeepLambdaError as exc:
        sys.exit(str(exc))
