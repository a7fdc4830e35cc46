"""gunicorn around the Flask application: one process, in which one thread serves connections and others compute.

One process, because each holds PyTorch and the models; PyTorch computes without the interpreter's lock, so threads use
all cores. One PyTorch thread for each pass: with two requests at a time that is as quick, and beside other
busy processes it is many times quicker than threads which wait for one another. `OMP_NUM_THREADS` asks for more.
"""

import gc
import logging
import os
import re
import resource
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication

from deeplambda.config import Settings
from deeplambda.errors import Overloaded
from deeplambda.service import problems
from deeplambda.service.cooperative_worker import CooperativeWorker
from deeplambda.service.load_shedding import CALM_S, LESS_LOAD, LoadShedder

if TYPE_CHECKING:
    from speed_layer.model_service.canaries import CanaryWatch
    from speed_layer.model_service.champions import ChampionWatch
    from speed_layer.model_service.metrics import Reporter, ServiceMetrics

CONNECTIONS = 4096
"""At a time; each takes some 20 kB. Past it, clients wait to be accepted."""
KEEP_ALIVE_S = 75
STOP_WITHIN_S = 20
_OF_APPLICATION = re.compile("/v[12]/models/([^/:]+)")
TURNS_WAITING = 384
"""Requests for one application that may wait to be read: more than clients that wait for their answers, as a rule."""
TURNS_OF_A_FLOOD = 8
"""While more come than can be answered: so many are worked on in about 5 ms."""
COLLECT_AFTER = (20_000, 20, 20)
"""For `gc.set_threshold`: with Python's own 700 requests in flight are gone through again and again."""
SWITCH_AFTER_S = 0.002
"""How long a pass that has its outputs waits, at most, for the thread that serves connections to let go of the
interpreter. With Python's own 0.005 eight clients get a tenth less, with 0.001 sixty-four do."""


class ModelWorker(CooperativeWorker):
    """A worker in which the requests for one application do not wait for all those of another, nor for a flood."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shedders = {
            name: LoadShedder(few=TURNS_OF_A_FLOOD, most=TURNS_WAITING) for name in ("", *self.app.applications)
        }

    def asked_for(self, request: Any) -> str:
        """The application that a path names, if it is served here."""
        found = _OF_APPLICATION.match(request.path)
        return found[1] if found and found[1] in self.app.applications else ""

    def sheds(self, asked_for: str, after: int) -> bool:
        """The oldest goes: who is answered has hardly waited then, however long those who are refused have."""
        return self._shedders[asked_for].refuses(after)

    def refused(self, request: Any, asked_for: str) -> bytes:
        """A refusal of a fifth of an answer's cost, without Flask."""
        self.app.count_shed(request.method, asked_for)
        return _SHED


class ModelServer(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's application: `run()` serves until SIGTERM, then exits the process.

    gunicorn calls `load_config` in the parent process and `load` in the worker. An application's code is loaded with
    its champion, on a thread of its own: one that is missing or broken harms no other.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.applications = frozenset(settings.applications)
        self._background: Sequence[ChampionWatch | CanaryWatch | Reporter] = ()
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options; gunicorn calls this when the application is constructed."""
        options: dict[str, Any] = {
            "bind": self._settings.listening_on(self._settings.model_url),
            "worker_class": "speed_layer.model_service.server.ModelWorker",
            "workers": 1,
            "worker_connections": CONNECTIONS,
            "keepalive": KEEP_ALIVE_S,
            "graceful_timeout": STOP_WITHIN_S,
            "control_socket_disable": True,
            "forwarded_allow_ips": "",  # nobody, on this machine either, sets the path or the scheme by a header
            "worker_exit": lambda arbiter, worker: worker.app.stop(),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """The WSGI application; gunicorn calls this in the worker process, so the parent never holds PyTorch."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a file; 1024 is a usual limit
        app, self._metrics, self._background = start_service(self._settings)
        gc.freeze()  # PyTorch's own objects are half a million: to go through them stops every request for 0.15 s
        gc.set_threshold(*COLLECT_AFTER)
        sys.setswitchinterval(SWITCH_AFTER_S)
        return app

    def count_shed(self, method: str, asked_for: str) -> None:
        """Count a request that was refused before it was read; the worker calls this."""
        self._metrics.shed(method, asked_for or None)

    def stop(self) -> None:
        """End the threads that `load` has started; gunicorn's hook `worker_exit` calls this in the worker process."""
        for thread in self._background:
            thread.stop()


def start_service(
    settings: Settings,
) -> tuple[Any, "ServiceMetrics", Sequence["ChampionWatch | CanaryWatch | Reporter"]]:
    """The WSGI application, its metrics, and its running background threads.

    These follow champions and canaries, and report metrics.
    """
    import torch

    from speed_layer.model_service.canaries import CanaryWatch
    from speed_layer.model_service.champions import ChampionWatch
    from speed_layer.model_service.metrics import Reporter, ServiceMetrics
    from speed_layer.model_service.serving import Champions
    from speed_layer.model_service.web import create_app

    torch.backends.cudnn.allow_tf32 = False  # fp32 is what variants are compared with
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.getLogger("kafka").setLevel(logging.ERROR)
    logging.getLogger("kafka.net").setLevel(logging.CRITICAL)  # it logs each attempt to reach a broker that is down
    metrics = ServiceMetrics(settings.applications)

    watches = {
        name: ChampionWatch(settings, name, on_swap=metrics.swapped, on_failure=metrics.load_failed)
        for name in settings.applications
    }
    canaries = CanaryWatch(settings, metrics.passed)
    app = create_app(settings, Champions(watches, canaries.running), metrics)
    background: list[ChampionWatch | CanaryWatch | Reporter] = [
        *watches.values(),
        canaries,
        Reporter(settings, metrics),
    ]
    for thread in background:
        thread.start()
    return app.wsgi_app, metrics, background


def _shed() -> bytes:
    reply = problems.of_error(Overloaded("more requests come than can be answered", LESS_LOAD, CALM_S))
    problems.name_error(reply)
    return f"HTTP/1.1 {reply.status}\r\n{reply.headers}".encode() + reply.get_data()


_SHED = _shed()
