"""A Hive gateway of the test's own, beside the stack's: its own port, and an application that exists for this test."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from pydantic_core import to_json
from pyhive import hive
from thrift.transport.TTransport import TTransportException

from deeplambda.config import host_of, port_of
from deeplambda.stack.local.ports import choose_free
from tests.integration.own_model_service import OwnService
from tests.traffic import eventually

ROOT = Path(__file__).parents[2]


class OwnGateway:
    """Serves the application of `service` while `running()` lasts."""

    def __init__(self, service: OwnService, folder: Path) -> None:
        self.service, self.application = service, service.name
        self.settings = service.settings.model_copy(update={"hive_address": f"127.0.0.1:{choose_free(set())}"})
        self.log = folder / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = self.settings
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving_layer.hive_gateway"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ
                | {
                    "DEEPLAMBDA_DATA_DIR": str(settings.data_dir),
                    "DEEPLAMBDA_HIVE_ADDRESS": settings.hive_address,
                    "DEEPLAMBDA_MODEL_URL": settings.model_url,
                    "DEEPLAMBDA_APPLICATIONS": to_json(settings.applications).decode(),
                    "DEEPLAMBDA_APPLICATIONS_DIR": str(settings.applications_dir),
                },
            )
        assert eventually(self._answers_or_ended, timeout_s=180, every_s=0.5), self.log.read_text()[-2000:]
        assert self.process.poll() is None, self.log.read_text()[-2000:]

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    @contextlib.contextmanager
    def running(self) -> Iterator["OwnGateway"]:
        """The gateway, until the end of the block."""
        self.start()
        try:
            yield self
        finally:
            if self.process is not None and self.process.poll() is None:
                self.stop()

    def connect(self, **more: Any) -> hive.Connection:
        """A session of the account `analyst`."""
        known = {"username": "analyst", "password": self.settings.analyst_password.get_secret_value()}
        address = self.settings.hive_address
        return hive.connect(host_of(address), port_of(address), auth="CUSTOM", **(known | more))

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What a statement answers, in a session of its own."""
        with contextlib.closing(self.connect()) as connection:
            return run(connection, statement)

    def processes(self) -> list[psutil.Process]:
        """The gateway's process and all that it started."""
        assert self.process is not None
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def process_times(self) -> list[float]:
        """Seconds of processor time that each of them has had."""
        return [times.user + times.system for times in (process.cpu_times() for process in self.processes())]

    def _answers_or_ended(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            return True
        with contextlib.suppress(hive.Error, TTransportException, EOFError, OSError):
            return self.rows("SELECT 1") == [(1,)]
        return False


def run(connection: hive.Connection, statement: str) -> list[tuple[Any, ...]]:
    """What a statement answers."""
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(statement)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


def message_of(error: hive.Error) -> str:
    """What the server said; PyHive hands over its whole response."""
    response = error.args[0]
    return str(response.status.errorMessage if hasattr(response, "status") else response)
