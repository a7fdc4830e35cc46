"""The model service's client: batches of features in, raw outputs and the model's version out.

Uses the Open Inference Protocol's binary extension on kept-alive connections. Imports no PyTorch, because Spark's
workers import it.
"""

import json
import random
import socket
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import urllib3
from numpy.typing import NDArray
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from deeplambda.config import Settings
from deeplambda.errors import BadInput, DeepLambdaError, NotReady

BODY_LIMIT_BYTES = 16 * 1024 * 1024
"""The largest request body that the service takes."""

_CHUNK_BYTES = 1024 * 1024  # a larger request gains nothing, and takes its share of the read time-out
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
_HEADER_LENGTH = "Inference-Header-Content-Length"
_KEEP_ALIVE_OPTIONS = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Raw outputs of N rows, float32 (N, C) or (N,), all made by one model version."""

    model_version: int
    outputs: NDArray[np.float32]


class ModelClient:
    """Scores one application's features. Safe to use from several threads; keep one for the life of a process.

    patience_s: how long a batch is tried again while the service restarts or has no model.
    """

    def __init__(
        self,
        settings: Settings,
        application: str,
        *,
        patience_s: float = 60,
        connect_timeout_s: float = 2,
        read_timeout_s: float = 5,
    ) -> None:
        self._path = f"{urlsplit(settings.model_url).path}/v2/models/{application}/infer"
        self._application = application
        self._patience_s = patience_s
        self._pool = urllib3.connection_from_url(
            settings.model_url,
            maxsize=16,
            retries=False,
            timeout=urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s),
            socket_options=_KEEP_ALIVE_OPTIONS,  # the defaults turn Nagle's algorithm off
        )

    def predict(self, features: NDArray[np.float32]) -> Scored:
        """Outputs of N rows. features: finite float32 (N, …), N at least 1.

        A large batch is sent in chunks, and again from the start if the model's version changes between them.
        Raises: BadInput when the service refuses the features, NotReady when it does not answer within `patience_s`.
        """
        rows = max(1, _CHUNK_BYTES // max(1, features[:1].nbytes))
        deadline = time.monotonic() + self._patience_s
        while True:
            chunks = [self._score(features[at : at + rows], deadline) for at in range(0, len(features), rows)]
            if len({chunk.model_version for chunk in chunks}) == 1:
                return Scored(
                    model_version=chunks[0].model_version,
                    outputs=chunks[0].outputs
                    if len(chunks) == 1
                    else np.concatenate([chunk.outputs for chunk in chunks]),
                )

    def _score(self, features: NDArray[np.float32], deadline: float) -> Scored:
        body, headers = _encode(features)
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                return _decode(self._post(body, headers))
            except NotReady:
                if time.monotonic() + wait_s > deadline:
                    raise
            time.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311  # spreads clients out, keeps no secret
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _post(self, body: bytes, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        try:
            response = self._pool.request("POST", self._path, body=body, headers=headers)
        except HTTPError as exc:
            raise NotReady(
                f"the model service did not answer: {exc}",
                "see 'deeplambda status' and 'deeplambda logs model'",
            ) from exc
        if response.status == 200:
            return response
        raise _refusal(self._application, response)


def _encode(features: NDArray[np.float32]) -> tuple[bytes, dict[str, str]]:
    tensor = np.ascontiguousarray(features, dtype="<f4")
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "features",
                    "datatype": "FP32",
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": tensor.nbytes},
                }
            ],
            "outputs": [{"name": "outputs", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
    return head + tensor.tobytes(), headers


def _decode(response: urllib3.BaseHTTPResponse) -> Scored:
    content = response.data
    head_bytes = int(response.headers[_HEADER_LENGTH])
    head = json.loads(content[:head_bytes])
    outputs: Any = np.frombuffer(content, dtype="<f4", offset=head_bytes).reshape(head["outputs"][0]["shape"])
    return Scored(model_version=int(head["model_version"]), outputs=outputs)


def _refusal(application: str, response: urllib3.BaseHTTPResponse) -> DeepLambdaError:
    try:
        problem = json.loads(response.data)
        detail = problem.get("error") or problem["detail"]
    except (ValueError, KeyError, TypeError, AttributeError):  # the reply is of a proxy in front of the service
        detail = response.reason or "no reason given"
    message = f"the model service answered {response.status} for {application!r}: {detail}"
    if response.status >= 500 or response.status in {408, 429}:
        return NotReady(message, "see 'deeplambda logs model'")
    return BadInput(message)
