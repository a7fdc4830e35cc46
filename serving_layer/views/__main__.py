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

_log = logging.getLogger("serving_layer.views")


def _details(loops: list[Loop]) -> dict[str, Any]:
    details = {name: value for loop in loops for name, value in loop.status.details.items()}
    waiting = [loop.name for loop in loops if loop.status.waits_for]
    return details | ({"waiting": ", ".join(waiting)} if waiting else {})


def main() -> int:
    """Run the four loops until SIGTERM; 1 when one of them fails for good."""
    log_to_stderr()
    for noisy in ("kafka", "sqlalchemy.pool"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # the loops say what they wait for
    settings, stop = load_settings(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    loops = [
        Loop(module.__name__.rpartition(".")[2], partial(module.run, settings), stop)
        for module in (realtime, metrics, outbox_relay, trim)
    ]
    for loop in loops:
        loop.start()
    failed = None
    while failed is None and not stop.wait(_BEAT_S):
        failed = next((loop for loop in loops if loop.failure), None)
        if not any(loop.status.stuck for loop in loops):
            write_heartbeat(settings, "views", **_details(loops))
    stop.set()
    for loop in loops:
        loop.join(_STOP_WITHIN_S / len(loops))
    if failed is not None:
        _log.error("%s failed", failed.name, exc_info=failed.failure)
        return 1
    _log.info("stopped")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DeepLambdaError as exc:
        sys.exit(str(exc))
