"""gunicorn around the Flask application: one process with many threads.

One process, because each holds PyTorch and the models; PyTorch computes without the interpreter's lock, so threads use
all cores. Many threads, because a slow client holds one while its request arrives; passes through the model are
limited elsewhere. One PyTorch thread for each pass: with two requests at a time that is as quick, and beside other
busy processes it is many times quicker than threads which wait for one another. `OMP_NUM_THREADS` asks for more.
"""

import logging
import os
from typing import Any
from urllib.parse import urlsplit

from gunicorn.app.base import BaseApplication

from deeplambda.config import Settings
from deeplambda.loading import pack_application

THREADS = 64
KEEP_ALIVE_S = 75
STOP_WITHIN_S = 20


class ModelServer(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """`run()` serves until SIGTERM, then exits the process.

    Raises when it is made: UnknownApplication, ConfigurationError.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        for name in settings.applications:
            pack_application(name, settings)  # what cannot be found should stop the start, not a worker
        super().__init__()

    def load_config(self) -> None:
        """gunicorn's settings; it asks for them by this name."""
        address = urlsplit(self._settings.model_url)
        options: dict[str, Any] = {
            "bind": f"{address.hostname}:{address.port or 80}",
            "worker_class": "speed_layer.model_service.worker.BoundedWorker",
            "workers": 1,
            "threads": THREADS,
            "keepalive": KEEP_ALIVE_S,
            "graceful_timeout": STOP_WITHIN_S,
            "control_socket_disable": True,
            "proc_name": "deeplambda-model-service",
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """The WSGI application, made in the worker process: the parent never holds PyTorch."""
        return start_service(self._settings)


def start_service(settings: Settings) -> Any:
    """Follow the champions and the figures in the background, and return the WSGI application."""
    import torch

    from speed_layer.model_service.champions import Champion, ChampionWatch
    from speed_layer.model_service.figures import Figures, Reporter
    from speed_layer.model_service.web import Champions, create_app

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.getLogger("kafka").setLevel(logging.ERROR)
    logging.getLogger("kafka.net").setLevel(
        logging.CRITICAL
    )  # each attempt of each connection to a broker that is down
    figures = Figures(settings.applications)

    def swapped(champion: Champion, took_s: float) -> None:
        figures.swapped(champion.card.application, champion.card.version)

    watches = {
        name: ChampionWatch(settings, name, on_swap=swapped, on_failure=figures.load_failed)
        for name in settings.applications
    }
    app = create_app(settings, Champions(watches), figures)
    for watch in watches.values():
        watch.start()
    Reporter(settings, figures).start()
    return app.wsgi_app
