"""The model service's client: batches of features in, raw outputs and the model's version out.

Uses the Open Inference Protocol's binary extension on kept-alive connections. Imports no PyTorch, because Spark's
workers import it.
"""

import json
import random
import socket
import time
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import urllib3
from numpy.typing import NDArray
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

from deeplambda.config import Settings
from deeplambda.errors import BadInput, Conflict, DeadlinePassed, DeepLambdaError, InvalidEvent, NotReady, Overloaded
from deeplambda.features import Features, chosen, row_bytes, row_count
from deeplambda.records.experiments import CANARY_HEADER, Canary

BODY_LIMIT_BYTES = 16 * 1024 * 1024
"""The largest request body that the service takes."""
ROWS_LIMIT = 8192
"""The most rows: whatever few bytes a row has, its event, outputs and prediction have hundreds."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
_GROWTH = 1.125  # of what was halved: after six answers it is as large again, and the seventh tells whether it may be
_HEADER_LENGTH = "Inference-Header-Content-Length"
_KEEP_ALIVE_OPTIONS = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]


FEATURIZER_HEADER = "X-Featurizer"
"""Names the code version and learned state that a request's features were made with."""
TIMEOUT_HEADER = "X-Timeout-Ms"
"""How many milliseconds after a request's first byte its answer is still of use; the service refuses what it cannot
answer by then. Triton's parameter `timeout`, in microseconds, means the same."""
DATATYPES = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}
"""By NumPy's name of a dtype, the Open Inference Protocol's."""


class TooLarge(BadInput):
    """A request, or the reply to it, is larger than the service takes."""


class OtherFeatures(Conflict):
    """The model takes features of another code version or learned state. wanted: that featurizer's id."""

    def __init__(self, message: str, *, wanted: str, model_version: int) -> None:
        super().__init__(message, "make the features with the code of the version that serves")
        self.wanted, self.model_version = wanted, model_version

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(OtherFeatures, wanted=self.wanted, model_version=self.model_version), (self.message,)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Raw outputs of N rows, float32 (N, C) or (N,). versions_N: int64, the model version that made each of them."""

    versions_N: NDArray[np.int64]
    outputs: NDArray[np.float32]


class ModelClient:
    """Scores one application's features. Safe to use from several threads; keep one for the life of a process.

    patience_s: how long a batch is tried again while the service restarts, is overloaded or has no model. part_bytes: a
    larger batch is sent in parts. Where one is not answered within `read_timeout_s` (None: as the settings say), parts
    are half as large, and grow again with each answer to one that is as large as that. version: the one that has to
    answer; None: the champion. canary: the one that ran at the last answer. output_bytes: what a row's outputs took in
    it.
    """

    def __init__(
        self,
        settings: Settings,
        application: str,
        *,
        patience_s: float = 60,
        connect_timeout_s: float = 2,
        read_timeout_s: float | None = None,
        part_bytes: int = 1024 * 1024,
        version: int | None = None,
    ) -> None:
        self.canary: Canary | None = None
        self.output_bytes = 0
        self._model_path = f"{urlsplit(settings.model_url).path}/v2/models/{application}"
        self._path = f"{self._model_path}{'' if version is None else f'/versions/{version}'}/infer"
        self._application = application
        read_timeout_s = settings.model_timeout_s if read_timeout_s is None else read_timeout_s
        self._patience_s, self._most_bytes, self._part_bytes = patience_s, float(part_bytes), float(part_bytes)
        self._timeout_ms = str(int(read_timeout_s * 1000))
        self._pool = urllib3.connection_from_url(
            settings.model_url,
            maxsize=16,
            retries=False,
            timeout=urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s),
            socket_options=_KEEP_ALIVE_OPTIONS,  # the defaults turn Nagle's algorithm off
        )

    def predict(self, features: Features, featurizer_id: str) -> Scored:
        """Outputs of N rows. features: finite, (N, …) each, N at least 1, as the featurizer of that id gives them.

        Parts of a large batch may be answered by different versions, all of which take that featurizer's features.
        Raises: OtherFeatures when the model takes another featurizer's, InvalidEvent when the model has no answer for
        some row, BadInput for any other refusal, NotReady when it does not answer within `patience_s`.
        """
        total, deadline = row_count(features), time.monotonic() + self._patience_s
        each_bytes = max(1, row_bytes(features))
        scored: list[Scored] = []
        at = 0
        while at < total:
            rows = min(max(1, int(self._part_bytes / each_bytes)), ROWS_LIMIT, total - at)
            try:
                scored.append(self._score(chosen(features, slice(at, at + rows)), featurizer_id, deadline))
            except DeadlinePassed:
                if rows == 1 or time.monotonic() > deadline:
                    raise
                self._part_bytes = rows * each_bytes / 2
            except TooLarge:
                if rows == 1:
                    raise
                self._part_bytes = self._most_bytes = rows * each_bytes / 2
            else:
                at += rows
                self.output_bytes = row_bytes({"outputs": scored[-1].outputs})
                if (rows + 1) * each_bytes > self._part_bytes:  # as large as it might be, so it tells of larger ones
                    self._part_bytes = min(self._part_bytes * _GROWTH, self._most_bytes)
        return (
            scored[0]
            if len(scored) == 1
            else Scored(
                versions_N=np.concatenate([part.versions_N for part in scored]),
                outputs=np.concatenate([part.outputs for part in scored]),
            )
        )

    def _score(self, features: Features, featurizer_id: str, deadline: float) -> Scored:
        """Those of one part. Raises: as `predict`, and DeadlinePassed at once for one of several rows."""
        body, headers = _encode(features)
        headers |= {FEATURIZER_HEADER: featurizer_id, TIMEOUT_HEADER: self._timeout_ms}
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                return _decode(self._post(body, headers))
            except NotReady as exc:
                if isinstance(exc, DeadlinePassed) and row_count(features) > 1:
                    raise
                asked_s = exc.wait_s if isinstance(exc, Overloaded) else 0.0
                pause_s = max(wait_s, asked_s) * random.uniform(1, 1.5)  # noqa: S311  # spreads clients, keeps no secret
                if time.monotonic() + pause_s > deadline:
                    raise
            time.sleep(pause_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def serving(self) -> int | None:
        """The version that serves now; None while none does.

        Raises: BadInput when the service does not know the application, NotReady when it does not answer.
        """
        try:
            response = self._pool.request("GET", self._model_path)
        except HTTPError as exc:
            raise NotReady(f"the model service did not answer: {exc}", "see 'deeplambda status'") from exc
        if response.status == HTTPStatus.OK:
            self.canary = Canary.of_header(response.headers.get(CANARY_HEADER))
            return int(response.headers["X-Model-Version"])
        if response.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return None
        raise _refusal(self._application, response)

    def _post(self, body: bytes, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        try:
            response = self._pool.request("POST", self._path, body=body, headers=headers)
        except HTTPError as exc:
            too_slow = isinstance(exc, ReadTimeoutError)
            raise (DeadlinePassed if too_slow else NotReady)(
                f"the model service did not answer: {exc}",
                "see 'deeplambda status' and 'deeplambda logs model'",
            ) from exc
        if response.status == 200:
            self.canary = Canary.of_header(response.headers.get(CANARY_HEADER))
            return response
        raise _refusal(self._application, response)


def _encode(features: Features) -> tuple[bytes, dict[str, str]]:
    arrays = {name: np.ascontiguousarray(array) for name, array in features.items()}
    inputs = [
        {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    outputs = [{"name": "outputs", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
    return b"".join([head, *(array.tobytes() for array in arrays.values())]), headers


def _decode(response: urllib3.BaseHTTPResponse) -> Scored:
    content = response.data
    head_bytes = int(response.headers[_HEADER_LENGTH])
    head = json.loads(content[:head_bytes])
    outputs: Any = np.frombuffer(content, dtype="<f4", offset=head_bytes).reshape(head["outputs"][0]["shape"])
    return Scored(versions_N=np.full(len(outputs), int(head["model_version"])), outputs=outputs)


def _refusal(application: str, response: urllib3.BaseHTTPResponse) -> DeepLambdaError:
    problem: Any = None
    try:
        problem = json.loads(response.data)
        detail = problem.get("error") or problem["detail"]
    except (ValueError, KeyError, TypeError, AttributeError):  # the reply is of a proxy in front of the service
        detail = response.reason or "no reason given"
    if response.status == HTTPStatus.CONFLICT and isinstance(problem, dict) and "featurizer" in problem:
        return OtherFeatures(detail, wanted=str(problem["featurizer"]), model_version=int(problem["model_version"]))
    message = f"the model service answered {response.status} for {application!r}: {detail}"
    if response.status == HTTPStatus.TOO_MANY_REQUESTS:
        return Overloaded(message, "start more replicas", _asked_s(problem, response))
    if response.status == HTTPStatus.GATEWAY_TIMEOUT:
        return DeadlinePassed(message, "see 'deeplambda logs model'")
    if response.status >= 500 or response.status == HTTPStatus.REQUEST_TIMEOUT:
        return NotReady(message, "see 'deeplambda logs model'")
    kinds: dict[int, type[BadInput]] = {
        HTTPStatus.UNPROCESSABLE_ENTITY: InvalidEvent,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: TooLarge,
    }
    return kinds.get(response.status, BadInput)(message)


def _asked_s(problem: Any, response: urllib3.BaseHTTPResponse) -> float:
    """How long the service asks its clients to wait: exactly in its own problems, in whole seconds by HTTP's header."""
    try:
        asked_s = problem["retry_after_s"] if isinstance(problem, dict) and "retry_after_s" in problem else None
        return float(response.headers.get("Retry-After", "0") if asked_s is None else asked_s)
    except (ValueError, TypeError):  # of a proxy: a date
        return 0.0
