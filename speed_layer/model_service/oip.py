"""The Open Inference Protocol v2 over HTTP, with its binary tensor data extension: bytes in, values out, and back.

A request is JSON, or JSON followed by raw little-endian tensors; the header `Inference-Header-Content-Length` then
says where the JSON ends. The model takes the tensors of its card and gives three.
Source: open-inference-protocol, specification/protocol/inference_rest.md; Triton, protocol/extension_binary_data.md.

Legend: N rows, … one row's shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json, to_json
from werkzeug.exceptions import RequestEntityTooLarge

from deeplambda.adapters.model_service import BODY_LIMIT_BYTES, DATATYPES, ROWS_LIMIT
from deeplambda.errors import BadInput, InvalidEvent
from deeplambda.features import Features, Specification, Tensor, row_count
from speed_layer.model_service.jobs import Scored

OUTPUTS, PREDICTION, CONFIDENCE = "outputs", "prediction", "confidence"
HEADER_LENGTH = "Inference-Header-Content-Length"
VALUE_BYTES, _TEXT_BYTES, _ENTRY_BYTES = 4, 20, 64
"""Of a reply: a raw output, as binary data and as text; a prediction, a confidence or a class, without its name."""
_WRITTEN_BYTES, _ASIDE_BYTES, _ASIDES = 32, 64 * 1024, 1024
"""Of a request: a number as text, with what is between it and the next; all else, in bytes, and in lists or objects."""
_DATATYPES = {OUTPUTS: "FP32", PREDICTION: "BYTES", CONFIDENCE: "FP64"}


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A checked request. features: finite, by name, of shape (N, …), read-only. outputs: (name, as binary?).

    likeliest: how many classes to name in place of the raw outputs; 0: these. timeout_us: Triton's, None without one.
    """

    id: str | None
    features: Features
    outputs: tuple[tuple[str, bool], ...]
    likeliest: int = 0
    timeout_us: int | None = None

    @property
    def decodes(self) -> bool:
        """Whether it asks for more than raw outputs."""
        return any(name != OUTPUTS for name, _ in self.outputs)


def decode_request(body: bytes, header_length: str | None, wanted: Specification) -> InferRequest:
    """The request in `body`. header_length: the header's text, None when absent. wanted: the tensors the model takes.

    Raises: BadInput (not JSON, wrong name, shape, datatype or size), RequestEntityTooLarge (more than `ROWS_LIMIT`
    rows), InvalidEvent (NaN, infinity).
    """
    split = json_bytes(header_length, len(body))
    text = body if split == len(body) else body[:split]
    _check_size(text, wanted)
    request = _json_object(text)
    binary = memoryview(body)[split:]
    features: Features = {}
    tensors = _input_tensors(request, wanted)
    for name, described in tensors.items():
        shape = _shape(name, described, wanted[name])
        size_bytes = _parameters(described).get("binary_data_size")
        if size_bytes is None:
            features[name] = _json_values(name, described.get("data"), shape, wanted[name].dtype)
        else:
            if "data" in described:
                raise BadInput(f"tensor {name!r} has both 'data' and 'binary_data_size'", "send one of the two")
            features[name], binary = _binary_values(name, binary, size_bytes, shape, wanted[name].dtype)
    if len(binary):
        raise BadInput(
            f"{len(binary)} bytes follow the JSON but no tensor has 'binary_data_size' for them",
            f"give tensor {next(iter(wanted))!r} the parameter 'binary_data_size', or send its 'data' in JSON",
        )
    counts = {name: len(array) for name, array in features.items()}
    if len(set(counts.values())) > 1:
        raise BadInput(f"the tensors have different numbers of rows: {counts}", "send the same N for each")
    for name, array in features.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
            datatype = DATATYPES[array.dtype.name]
            raise InvalidEvent(
                f"row {row} of tensor {name!r} holds NaN, infinity or a value beyond {datatype}", "send finite numbers"
            )
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BadInput(f"'id' is {_short(identity)}", "send 'id' as a string")
    return InferRequest(
        id=identity,
        features=features,
        outputs=_requested(request),
        likeliest=_likeliest(request),
        timeout_us=_count(request, "timeout", 10**12),
    )


def _shape(name: str, described: dict[str, Any], wanted: Tensor) -> list[int]:
    shape = described.get("shape")
    if not (
        isinstance(shape, list)
        and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
        and len(shape) == len(wanted.shape) + 1
        and shape[1:] == list(wanted.shape)
        and shape[0] >= 1
    ):
        expected = ", ".join(str(n) for n in ("N", *wanted.shape))
        raise BadInput(f"tensor {name!r} has shape {_short(shape)}", f"send shape [{expected}] with N of at least 1")
    if shape[0] > ROWS_LIMIT:
        given = _short(shape[0])
        raise RequestEntityTooLarge(f"tensor {name!r} has {given} rows; send at most {ROWS_LIMIT} in one request")
    if described.get("datatype") != DATATYPES[wanted.dtype]:
        raise BadInput(
            f"tensor {name!r} has datatype {_short(described.get('datatype'))}", f"send {DATATYPES[wanted.dtype]}"
        )
    return shape


def json_bytes(header_length: str | None, body_length: int) -> int:
    """How much of a body is JSON. header_length: the header's text, None when absent. Raises: BadInput."""
    if header_length is None:
        return body_length
    if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 12):
        raise BadInput(f"header {HEADER_LENGTH} is {header_length[:40]!r}", "send the length of the JSON in bytes")
    if int(header_length) > body_length:
        raise BadInput(
            f"header {HEADER_LENGTH} says {header_length}, but the body has {body_length} bytes",
            "send the length of the JSON in bytes",
        )
    return int(header_length)


def reply_bytes(request: InferRequest, output_shape: Sequence[int], name_bytes: int = 0) -> int:
    """About what the reply will take, and no less than the outputs that it is made of. output_shape: of one row.
    name_bytes: of the longest name of a class, as JSON.

    Raises: RequestEntityTooLarge where that is more than a request may take.
    """
    rows, width, entry_bytes = row_count(request.features), prod(output_shape), _ENTRY_BYTES + name_bytes
    size_bytes = rows * width * VALUE_BYTES
    for name, binary in request.outputs:
        if name != OUTPUTS:
            size_bytes += rows * (entry_bytes if name == PREDICTION else _ENTRY_BYTES)
        elif request.likeliest:
            size_bytes += rows * min(request.likeliest, width) * entry_bytes
        elif not binary:
            size_bytes += rows * width * _TEXT_BYTES
    check_reply(size_bytes)
    return size_bytes


def check_reply(size_bytes: int) -> None:
    """Raises: RequestEntityTooLarge where a reply, or what it is made of, would be larger than a request may be."""
    if size_bytes > BODY_LIMIT_BYTES:
        raise RequestEntityTooLarge(
            f"the reply would take about {size_bytes} bytes, of at most {BODY_LIMIT_BYTES}; send fewer rows at a time"
        )


def _check_size(text: bytes, wanted: Specification) -> None:
    """Whether as many rows as there may be could need so much JSON: to parse it stops all else in the process.

    Raises: RequestEntityTooLarge, BadInput.
    """
    if len(text) < _ASIDE_BYTES:
        return
    values = sum(prod(tensor.shape) for tensor in wanted.values())
    most_bytes = ROWS_LIMIT * values * _WRITTEN_BYTES + _ASIDE_BYTES
    if len(text) > most_bytes:
        raise RequestEntityTooLarge(f"the JSON has {len(text)} bytes; {ROWS_LIMIT} rows need {most_bytes} at most")
    lists = sum(prod(tensor.shape[:n]) for tensor in wanted.values() for n in range(len(tensor.shape)))
    if text.count(b"[") > ROWS_LIMIT * lists + _ASIDES or text.count(b"{") > _ASIDES:
        raise BadInput("the JSON has more lists or objects than tensors have", "send 'data' as flat lists")


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        request = from_json(text, cache_strings="none")
    except ValueError as exc:
        raise BadInput(f"the request is not JSON: {exc}", "send UTF-8 JSON, nested at most 200 deep") from exc
    if not isinstance(request, dict):
        raise BadInput("the request is not a JSON object", "send an object with the key 'inputs'")
    return request


def _input_tensors(request: dict[str, Any], wanted: Specification) -> dict[str, dict[str, Any]]:
    inputs = request.get("inputs")
    names = " and ".join(map(repr, wanted))
    if not (isinstance(inputs, list) and all(isinstance(tensor, dict) for tensor in inputs)):
        raise BadInput("the request has no list 'inputs' of tensors", f"send {_number(wanted)} named {names}")
    given = [tensor.get("name") for tensor in inputs]
    if len(given) != len(wanted) or any(name not in given for name in wanted):
        named = ", ".join(_short(name) for name in given[:5]) or "none"
        raise BadInput(f"'inputs' names the tensors {named}", f"send exactly {_number(wanted)}, named {names}")
    return {tensor["name"]: tensor for tensor in inputs}


def _number(wanted: Specification) -> str:
    return "one tensor" if len(wanted) == 1 else f"{len(wanted)} tensors"


def _parameters(of: dict[str, Any]) -> dict[str, Any]:
    parameters = of.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadInput(f"'parameters' is {_short(parameters)}", "send 'parameters' as an object")
    return parameters


def _binary_values(
    name: str, binary: memoryview, size_bytes: Any, shape: list[int], dtype: str
) -> tuple[NDArray[Any], memoryview]:
    """The tensor, and what follows it."""
    stored = np.dtype(dtype).newbyteorder("<")
    needed = prod(shape) * stored.itemsize
    if size_bytes != needed or isinstance(size_bytes, bool):
        raise BadInput(
            f"'binary_data_size' of tensor {name!r} is {_short(size_bytes)}",
            f"shape {shape} of {DATATYPES[dtype]} takes {needed} bytes",
        )
    if len(binary) < needed:
        raise BadInput(
            f"{len(binary)} bytes follow the JSON, 'binary_data_size' says {needed}",
            f"send all of the tensor, and the JSON's length in {HEADER_LENGTH}",
        )
    if dtype == "bool":
        values = np.frombuffer(binary[:needed], np.uint8).reshape(shape)
        if values.max(initial=0) > 1:
            raise BadInput(f"tensor {name!r} holds bytes other than 0 and 1", "send BOOL as 0 and 1")
        return values.view(np.bool_), binary[needed:]
    return np.frombuffer(binary[:needed], dtype=stored).reshape(shape), binary[needed:]


def _json_values(name: str, data: Any, shape: list[int], dtype: str) -> NDArray[Any]:
    if not isinstance(data, list):
        raise BadInput(f"tensor {name!r} has no list 'data'", "send its numbers as 'data', or as binary data")
    kinds: set[type] = {bool} if dtype == "bool" else {int, float}
    # else an integer past 64 bits would be no number
    wanted = np.float64 if np.dtype(dtype).kind == "f" else None
    try:
        numbers = np.array(data, wanted) if _are_all(data, kinds) else np.array(None)
    except OverflowError as exc:
        raise InvalidEvent(f"tensor {name!r} holds a value beyond {DATATYPES[dtype]}", "send finite numbers") from exc
    except ValueError as exc:
        raise BadInput(f"'data' of tensor {name!r} is ragged", f"send it flat, or nested as shape {shape}") from exc
    if numbers.dtype.kind not in ("b" if dtype == "bool" else "iuf"):
        kind = "true or false" if dtype == "bool" else "a number"
        raise BadInput(
            f"'data' of tensor {name!r} holds something that is not {kind}", f"send {DATATYPES[dtype]} alone"
        )
    if numbers.size != prod(shape) or (numbers.ndim > 1 and list(numbers.shape) != shape):
        raise BadInput(
            f"'data' of tensor {name!r} has shape {list(numbers.shape)}", f"send it flat, or nested as {shape}"
        )
    if np.dtype(dtype).kind == "i":
        limits = np.iinfo(dtype)
        if numbers.dtype.kind != "i" or numbers.min(initial=0) < limits.min or numbers.max(initial=0) > limits.max:
            raise BadInput(f"'data' of tensor {name!r} holds what is no {DATATYPES[dtype]}", "send whole numbers")
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which is refused by name
        return numbers.astype(dtype).reshape(shape)


def _are_all(data: list[Any], kinds: set[type]) -> bool:
    """Whether a list, nested or not, holds these alone. NumPy would make all of its texts as wide as the widest."""
    found = set(map(type, data))
    return found <= kinds or (found == {list} and all(_are_all(each, kinds) for each in data))


def _requested(request: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
    all_binary = _flag(request, "binary_data_output", default=False)
    outputs = request.get("outputs")
    if outputs is None or outputs == []:
        return tuple((name, all_binary) for name in _DATATYPES)
    if not (isinstance(outputs, list) and all(isinstance(output, dict) for output in outputs)):
        raise BadInput("'outputs' is not a list of objects", 'send it as [{"name": …}], or leave it out')
    names = [output.get("name") for output in outputs]
    for name in names:
        if not isinstance(name, str) or name not in _DATATYPES or names.count(name) > 1:
            raise BadInput(
                f"'outputs' asks for {_short(name)}", f"ask for each of {', '.join(_DATATYPES)} at most once"
            )
    return tuple((output["name"], _flag(output, "binary_data", default=all_binary)) for output in outputs)


def _flag(of: dict[str, Any], name: str, *, default: bool) -> bool:
    value = _parameters(of).get(name, default)
    if not isinstance(value, bool):
        raise BadInput(f"parameter '{name}' is {_short(value)}", "send true or false")
    return value


def _likeliest(request: dict[str, Any]) -> int:
    asked = {output["name"]: _count(output, "classification", 2**31) or 0 for output in request.get("outputs") or ()}
    if others := [name for name, count in asked.items() if count and name != OUTPUTS]:
        raise BadInput(f"'classification' of output {others[0]!r}", f"only {OUTPUTS!r} has classes")
    return asked.get(OUTPUTS, 0)


def _count(of: dict[str, Any], name: str, limit: int) -> int | None:
    value = _parameters(of).get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise BadInput(f"parameter '{name}' is {_short(value)}", f"send a whole number from 0 to {limit - 1}")
    return value


def _short(value: Any) -> str:
    text = to_json(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}…"


def encode_response(
    request: InferRequest,
    *,
    model: str,
    version: int,
    scored: Scored,
    classes: Sequence[str] = (),
) -> tuple[bytes, Mapping[str, str]]:
    """Body and headers of a reply. scored: with predictions if any are asked for. classes: names of the outputs."""
    decoded = scored.predictions
    tensors: list[dict[str, Any]] = []
    tensor_chunks: list[bytes] = []
    for name, binary in request.outputs:
        if name == OUTPUTS or decoded is None:
            array: NDArray[Any] = (
                _classified(scored.outputs, request.likeliest, classes) if request.likeliest else scored.outputs
            )
        else:
            array = np.array(decoded.values, dtype=object) if name == PREDICTION else decoded.confidence_N
        datatype = "BYTES" if array.dtype == object else _DATATYPES[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary:
            tensor_chunks.append(_raw(array))
            tensor["parameters"] = {"binary_data_size": len(tensor_chunks[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    head: dict[str, Any] = {"model_name": model, "model_version": str(version), "outputs": tensors}
    if request.id is not None:
        head["id"] = request.id
    text = to_json(head, inf_nan_mode="null")  # an objective without a confidence gives NaN
    if not tensor_chunks:
        return text, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
    return b"".join([text, *tensor_chunks]), headers


def _raw(array: NDArray[Any]) -> bytes:
    """A tensor's bytes: little-endian numbers in row order; each string after its length as 4 bytes."""
    if array.dtype != object:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [str(value).encode() for value in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def _classified(outputs: NDArray[np.float32], likeliest: int, classes: Sequence[str]) -> NDArray[Any]:
    """Triton's classification extension: `value:index:name` of the largest outputs, (N, likeliest)."""
    if outputs.ndim != 2:
        raise BadInput("this model has one output for each row, and no classes", "send no 'classification'")
    best_NK = np.argsort(-outputs, axis=1, kind="stable")[:, :likeliest]
    named = [
        [f"{row[i]:f}:{i}" + (f":{classes[i]}" if i < len(classes) else "") for i in best]
        for row, best in zip(outputs, best_NK, strict=True)
    ]
    return np.array(named, dtype=object)


def configuration(model: str, features: Specification, output_shape: Sequence[int], best_rows: int) -> dict[str, Any]:
    """The model as Triton's model configuration describes one; what it says of batches is how requests share passes."""
    outputs: dict[str, tuple[str, Sequence[int]]] = {
        name: (datatype, output_shape if name == OUTPUTS else ()) for name, datatype in _DATATYPES.items()
    }
    return {
        "name": model,
        "platform": "pytorch",
        "backend": "deeplambda",
        "max_batch_size": max(1, min(ROWS_LIMIT, BODY_LIMIT_BYTES // (VALUE_BYTES * prod(output_shape)))),
        "input": [_configured(name, DATATYPES[tensor.dtype], tensor.shape) for name, tensor in features.items()],
        "output": [_configured(name, datatype, shape) for name, (datatype, shape) in outputs.items()],
        "dynamic_batching": {"preferred_batch_size": [best_rows], "max_queue_delay_microseconds": 0},
    }


def _configured(name: str, datatype: str, shape: Sequence[int]) -> dict[str, Any]:
    kind = f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}"
    scalar: dict[str, Any] = {} if shape else {"reshape": {"shape": []}}  # a configuration has no empty dims
    return {"name": name, "data_type": kind, "dims": list(shape) or [1], **scalar}


def metadata(model: str, version: int, features: Specification, output_shape: Sequence[int]) -> dict[str, Any]:
    """The model's tensors as the protocol's metadata names them; -1 stands for N."""
    shapes = {OUTPUTS: [-1, *output_shape], PREDICTION: [-1], CONFIDENCE: [-1]}
    return {
        "name": model,
        "versions": [str(version)],
        "platform": "pytorch",
        "inputs": [
            {"name": name, "datatype": DATATYPES[tensor.dtype], "shape": [-1, *tensor.shape]}
            for name, tensor in features.items()
        ],
        "outputs": [{"name": name, "datatype": _DATATYPES[name], "shape": shape} for name, shape in shapes.items()],
    }
