"""Keep the real-time view, and with it metrics, outbox and trimming: `python -m serving_layer.views`."""

import logging
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from deeplambda.config import load_settings
from deeplambda.errors import DeepLambdaError
from deeplambda.service import outbox_relay
from deeplambda.service.heartbeat import BEHIND, states_of, write_heartbeat
from deeplambda.service.logs import log_to_stderr
from deeplambda.service.loops import Loop, LoopStatus, stop_on_signals
from serving_layer.views import metrics, realtime, reporting, trim
from serving_layer.views.reporting import Figures

_BEAT_S = 2.0
_STOP_WITHIN_S = 10.0
_LONGEST_PAUSE_S = 5.0  # these loops wait for Kafka and MySQL, and should go on soon after those are back

_log = logging.getLogger("serving_layer.views")


def _details(loops: list[Loop]) -> dict[str, Any]:
    details = {name: value for loop in loops for name, value in loop.status.details.items()}
    waiting = [loop.name for loop in loops if loop.status.waits_for]
    return details | ({"waiting": ", ".join(waiting)} if waiting else {})


def _states(loops: list[Loop], figures: Figures) -> dict[str, str]:
    """By loop, and by application that is behind; the writers are one loop to whoever looks."""
    states = states_of((loop.name.partition("-")[0], loop.status.state) for loop in loops)
    return states | {name: f"{BEHIND}: {why}" for name, why in figures.behind.items()}


def main() -> None:
    """Run the loops until SIGTERM. One that fails is started again, and the heartbeat says which and why."""
    log_to_stderr()
    for noisy in ("kafka", "sqlalchemy.pool"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # the loops say what they wait for
    settings, stop = load_settings(), stop_on_signals()
    figures = Figures()
    work: dict[str, Callable[[LoopStatus, threading.Event], None]] = {
        f"realtime-{n}": partial(realtime.run, settings, figures, (n, realtime.WRITERS))
        for n in range(realtime.WRITERS)
    }
    work |= {
        "reporting": partial(reporting.run, settings, figures),
        "metrics": partial(metrics.run, settings),
        "outbox_relay": partial(outbox_relay.run, settings),
        "trim": partial(trim.run, settings),
    }
    loops = [Loop(name, run, stop, longest_pause_s=_LONGEST_PAUSE_S) for name, run in work.items()]
    for loop in loops:
        loop.start()
    while not stop.wait(_BEAT_S):
        if not any(loop.status.stuck for loop in loops):
            write_heartbeat(settings, "views", states=_states(loops, figures), **_details(loops))
    for loop in loops:
        loop.join(_STOP_WITHIN_S / len(loops))
    _log.info("stopped")


if __name__ == "__main__":
    try:
        main()
    except DeepLambdaError as exc:
        sys.exit(str(exc))
