"""A model service of the test's own, beside the stack's: its own application, port and champions, on the real stack.

So a test may promote broken models and kill the service, and nobody else notices.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pyarrow as pa
import torch
import urllib3
from numpy.typing import NDArray
from pydantic_core import to_json
from safetensors.torch import save

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.features import Features, Tensor, call
from deeplambda.loading import pack_application
from deeplambda.records.featurizer import Featurizer
from deeplambda.state import outbox, registry
from deeplambda.state.card import CARD, KEPT_ROWS, WEIGHTS, Card, artefact_key, code_key
from deeplambda.state.kept_rows import KeptRows
from examples.digits.application import Digits
from tests.traffic import eventually

ROOT = Path(__file__).parents[2]
FEATURE_SHAPE = (1, 28, 28)


def model_of(seed: int) -> torch.nn.Module:
    """A digits model that nobody has trained; another one for each seed."""
    torch.manual_seed(seed)
    model: torch.nn.Module = Digits().build_model().eval().requires_grad_(False)
    return model


def images(count: int, seed: int = 0) -> Features:
    """Features of `count` rows of noise."""
    return {"features": np.random.default_rng(seed).standard_normal((count, *FEATURE_SHAPE)).astype(np.float32)}


def fp32_outputs(model: torch.nn.Module, features: Features) -> NDArray[np.float32]:
    """What the model itself says."""
    with torch.inference_mode():
        outputs: torch.Tensor = call(model, {name: torch.from_numpy(array) for name, array in features.items()})
    return outputs.numpy()


def drawn(count: int) -> pa.RecordBatch:
    """Payloads of the digits application."""
    randomness = np.random.default_rng(3)
    return pa.RecordBatch.from_pydict({"image": [randomness.bytes(784) for _ in range(count)]})


class OwnService:
    """One application that exists for this test alone, and a service which serves it while `running()` lasts.

    name: of an application that is in `folder` already, or a new one's; without it, digits under a name of its own.
    """

    def __init__(self, stack: Settings, folder: Path, name: str | None = None) -> None:
        self.name = name or f"digits_{secrets.token_hex(4)}"
        if not (folder / self.name).exists():
            source = (ROOT / "examples/digits/application.py").read_text()
            (folder / self.name).mkdir(parents=True)
            (folder / self.name / "application.py").write_text(source.replace('"digits"', f'"{self.name}"'))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.settings = stack.model_copy(
            update={"model_url": url, "applications": (self.name,), "applications_dir": folder}
        )
        self.address = (urlsplit(url).hostname, urlsplit(url).port)
        self.log = folder / "service.log"
        self.infer_path, self.predict_path = f"/v2/models/{self.name}/infer", f"/v1/models/{self.name}:predict"
        self._http = urllib3.PoolManager(retries=False, timeout=10)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def featurizer_id(self) -> str:
        """Of the code that is in the application's folder now."""
        return pack_application(self.name, self.settings).code_version

    def start(self, **environment: str) -> None:
        """Start the service and wait until it takes connections. environment: DEEPLAMBDA_ variables."""
        settings = self.settings
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "speed_layer.model_service"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ
                | {
                    "DEEPLAMBDA_DATA_DIR": str(settings.data_dir),
                    "DEEPLAMBDA_MODEL_URL": settings.model_url,
                    "DEEPLAMBDA_APPLICATIONS": to_json(settings.applications).decode(),
                    "DEEPLAMBDA_APPLICATIONS_DIR": str(settings.applications_dir),
                }
                | environment,
            )
        process = self.process
        assert eventually(lambda: self.is_live() or process.poll() is not None, timeout_s=120), self.log.read_text()
        assert process.poll() is None, self.log.read_text()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        assert self.process is not None
        worker = self.worker()
        self.process.kill()
        self.process.wait()
        worker.kill()
        psutil.wait_procs([worker], timeout=10)

    @contextlib.contextmanager
    def running(self, **environment: str) -> Iterator["OwnService"]:
        """The service, until the end of the block."""
        self.start(**environment)
        try:
            yield self
        finally:
            if self.process is not None and self.process.poll() is None:
                self.stop()

    def worker(self) -> psutil.Process:
        """The process that answers requests: the child of the one that was started."""
        assert self.process is not None
        (worker,) = psutil.Process(self.process.pid).children()
        return worker

    def is_live(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return self.request("GET", "/v2/health/live").status == 200
        return False

    def request(self, method: str, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
        """One request, with no retry."""
        return self._http.request(method, self.settings.model_url + path, **more)

    def raw(self, request: bytes, timeout_s: float = 5) -> bytes:
        """What comes back for these bytes until the service closes the connection."""
        answer = b""
        with socket.create_connection(self.address, timeout=timeout_s) as connection:
            connection.sendall(request)
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while piece := connection.recv(65536):
                    answer += piece
        return answer

    def publish(self, model: torch.nn.Module, weights: bytes | None = None, **of_card: Any) -> int:
        """Put a model on S3 and in the registry, with the application's code as it is now in its folder.

        weights: other bytes in their place; of_card: other facts.
        """
        packed = pack_application(self.name, self.settings)
        payload = drawn(8)
        features = Featurizer(packed.load(), code_version=packed.code_version).features(payload)
        kept = KeptRows(payload=payload, features=features, outputs=fp32_outputs(model, features))

        def artefacts(version: int) -> Card:
            store = ObjectStore(self.settings)
            content = save(model.state_dict()) if weights is None else weights
            digest = store.put(artefact_key(self.name, version, WEIGHTS), content)
            facts: dict[str, Any] = {
                "application": self.name,
                "version": version,
                "run": f"run-{version}",
                "dataset": "none",
                "snapshot": 0,
                "code_version": packed.code_version,
                "code_sha256": store.put(code_key(self.name, packed.code_version), packed.zip_file.read_bytes()),
                "kept_rows_sha256": store.put(artefact_key(self.name, version, KEPT_ROWS), kept.encode()),
                "hyperparameters": {},
                "metrics": {"accuracy": 0.1},
                "parameters": 1_256_080,
                "features": {"features": Tensor(shape=FEATURE_SHAPE)},
                "output_size": 10,
                "weights_sha256": digest,
                "onnx_sha256": "",
                "trained_rows": 0,
                "training_s": 0,
                "device": "cpu",
                "torch_version": torch.__version__,
                "created_at": datetime.now(UTC),
            }
            card = Card(**(facts | of_card))
            store.put(artefact_key(self.name, version, CARD), card.model_dump_json().encode())
            return card

        engine = mysql.engine(self.settings, "platform")
        return registry.publish(engine, self.name, secrets.token_hex(8), artefacts)

    def promote(self, version: int) -> None:
        """Make `version` the champion, and say so on Kafka."""
        registry.promote(mysql.engine(self.settings, "platform"), self.name, version)
        self.announce()

    def roll_back(self) -> None:
        """Make the champion before the champion again."""
        registry.roll_back(mysql.engine(self.settings, "platform"), self.name)
        self.announce()

    def announce(self) -> None:
        """Send what waits in the outbox."""
        with Publisher(self.settings) as publisher:
            while outbox.relay(mysql.engine(self.settings, "platform"), publisher):
                pass

    def version(self) -> int | None:
        """The version that serves."""
        reply = self.request("GET", f"/v1/models/{self.name}")
        return reply.json()["model_version"] if reply.status == 200 else None

    def error(self) -> str | None:
        """Why the newest champion does not serve."""
        models = self.request("GET", "/v1/models").json()["models"]
        error: str | None = models[0]["error"]
        return error

    def serves(self, version: int, timeout_s: float = 20) -> bool:
        """Whether `version` serves before time is up."""
        return eventually(lambda: self.version() == version, timeout_s)

    def fails(self, wanted: Callable[[str], bool] = bool, timeout_s: float = 20) -> str:
        """The reason why a champion does not serve, once there is one like that; else a failed assertion."""
        assert eventually(lambda: wanted(self.error() or ""), timeout_s), self.log.read_text()
        return str(self.error())
