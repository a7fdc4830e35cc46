"""Serve queries: `python -m serving_layer.query_service`."""

import logging
import sys
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from deeplambda.config import Settings, load_settings
from deeplambda.errors import DeepLambdaError
from deeplambda.service.logs import log_to_stderr

THREADS = 16


class Service(BaseApplication):  # type: ignore[misc]
    """gunicorn with one process: queries of Hive live in its threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """The options. gunicorn calls it once, when this object is made, in place of reading its command line."""
        options: dict[str, Any] = {
            "bind": self._settings.listening_on(self._settings.query_url),
            "workers": 1,
            "worker_class": "deeplambda.service.http_worker.BoundedWorker",
            "threads": THREADS,
            "timeout": 60,
            "graceful_timeout": 10,
            "keepalive": 75,  # longer than a client may keep an idle connection for its next request
            "accesslog": None,
            "loglevel": "warning",
            "proc_name": "deeplambda query service",
            "worker_exit": _stop,
            "control_socket_disable": True,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """The WSGI application. gunicorn calls it in the worker; imported only there, it leaves the parent small."""
        from serving_layer.query_service.app import create_app

        return create_app(self._settings)


def _stop(_: Any, worker: Any) -> None:
    """gunicorn's hook `worker_exit`: called in the worker, before its process ends."""
    worker.app.callable.extensions["hive_queries"].stop()


if __name__ == "__main__":
    log_to_stderr()
    logging.getLogger("sqlglot").setLevel(logging.CRITICAL)  # it would log what it refuses
    logging.getLogger("pyhive").setLevel(logging.WARNING)
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # whoever loses a connection reports it
    try:
        Service(load_settings()).run()
    except DeepLambdaError as exc:
        sys.exit(str(exc))
