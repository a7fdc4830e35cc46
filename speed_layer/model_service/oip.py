"""The Open Inference Protocol v2 over HTTP, with its binary tensor data extension: bytes in, values out, and back.

A request is JSON, or JSON followed by raw little-endian tensors; the header `Inference-Header-Content-Length` then
says where the JSON ends. The model's input is one tensor, `features`; its outputs are three.
Source: open-inference-protocol, specification/protocol/inference_rest.md; Triton, protocol/extension_binary_data.md.

Legend: N rows, … one row's shape.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json, to_json

from deeplambda.errors import BadInput, InvalidEvent
from deeplambda.objective import Predictions

FEATURES, OUTPUTS, PREDICTION, CONFIDENCE = "features", "outputs", "prediction", "confidence"
HEADER_LENGTH = "Inference-Header-Content-Length"
_DATATYPES = {OUTPUTS: "FP32", PREDICTION: "BYTES", CONFIDENCE: "FP64"}


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A checked request. features: finite float32 of shape (N, …), read-only. outputs: (name, as binary?)."""

    id: str | None
    features: NDArray[np.float32]
    outputs: tuple[tuple[str, bool], ...]


def decode_request(body: bytes, header_length: str | None, feature_shape: Sequence[int]) -> InferRequest:
    """The request in `body`. header_length: the header's text, None when absent.

    Raises: BadInput (not JSON, wrong name, shape, datatype or size), InvalidEvent (NaN, infinity).
    """
    split = _header_end(header_length, len(body))
    request = _json_object(body if split == len(body) else body[:split])
    binary = memoryview(body)[split:]
    tensor = _input_tensor(request)
    expected = ", ".join(str(n) for n in ("N", *feature_shape))
    shape = tensor.get("shape")
    if not (
        isinstance(shape, list)
        and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
        and len(shape) == len(feature_shape) + 1
        and shape[1:] == list(feature_shape)
        and shape[0] >= 1
    ):
        raise BadInput(
            f"tensor '{FEATURES}' has shape {_short(shape)}", f"send shape [{expected}] with N of at least 1"
        )
    if tensor.get("datatype") != "FP32":
        raise BadInput(f"tensor '{FEATURES}' has datatype {_short(tensor.get('datatype'))}", "send FP32")
    size_bytes = _parameters(tensor).get("binary_data_size")
    if size_bytes is None:
        if len(binary):
            raise BadInput(
                f"{len(binary)} bytes follow the JSON but no tensor has 'binary_data_size'",
                f"give tensor '{FEATURES}' the parameter 'binary_data_size', or send its 'data' in JSON",
            )
        features = _json_features(tensor.get("data"), shape)
    else:
        if "data" in tensor:
            raise BadInput(f"tensor '{FEATURES}' has both 'data' and 'binary_data_size'", "send one of the two")
        features = _binary_features(binary, size_bytes, shape)
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).reshape(shape[0], -1).all(axis=1))[0])
        raise InvalidEvent(
            f"row {row} of tensor '{FEATURES}' holds NaN, infinity or a value beyond FP32", "send finite numbers"
        )
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BadInput(f"'id' is {_short(identity)}", "send 'id' as a string")
    return InferRequest(id=identity, features=features, outputs=_requested(request))


def _header_end(header_length: str | None, body_length: int) -> int:
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


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        request = from_json(text, cache_strings="none")
    except ValueError as exc:
        raise BadInput(f"the request is not JSON: {exc}", "send UTF-8 JSON, nested at most 200 deep") from exc
    if not isinstance(request, dict):
        raise BadInput("the request is not a JSON object", "send an object with the key 'inputs'")
    return request


def _input_tensor(request: dict[str, Any]) -> dict[str, Any]:
    inputs = request.get("inputs")
    if not (isinstance(inputs, list) and all(isinstance(tensor, dict) for tensor in inputs)):
        raise BadInput("the request has no list 'inputs' of tensors", f"send one tensor named '{FEATURES}'")
    if [tensor.get("name") for tensor in inputs] != [FEATURES]:
        named = ", ".join(_short(tensor.get("name")) for tensor in inputs[:5]) or "none"
        raise BadInput(f"'inputs' names the tensors {named}", f"send exactly one tensor, named '{FEATURES}'")
    tensor: dict[str, Any] = inputs[0]
    return tensor


def _parameters(of: dict[str, Any]) -> dict[str, Any]:
    parameters = of.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadInput(f"'parameters' is {_short(parameters)}", "send 'parameters' as an object")
    return parameters


def _binary_features(binary: memoryview, size_bytes: Any, shape: list[int]) -> NDArray[np.float32]:
    needed = prod(shape) * 4
    if size_bytes != needed or isinstance(size_bytes, bool):
        raise BadInput(
            f"'binary_data_size' of tensor '{FEATURES}' is {_short(size_bytes)}",
            f"shape {shape} of FP32 takes {needed} bytes",
        )
    if len(binary) != needed:
        raise BadInput(
            f"{len(binary)} bytes follow the JSON, 'binary_data_size' says {needed}",
            f"send all of the tensor, and the JSON's length in {HEADER_LENGTH}",
        )
    return np.frombuffer(binary, dtype="<f4").reshape(shape)


def _json_features(data: Any, shape: list[int]) -> NDArray[np.float32]:
    if not isinstance(data, list):
        raise BadInput(f"tensor '{FEATURES}' has no list 'data'", "send its numbers as 'data', or as binary data")
    try:
        numbers = np.array(data)
    except ValueError as exc:
        raise BadInput(f"'data' of tensor '{FEATURES}' is ragged", f"send it flat, or nested as shape {shape}") from exc
    if numbers.dtype.kind not in "iuf":
        raise BadInput(f"'data' of tensor '{FEATURES}' holds something that is not a number", "send numbers alone")
    if numbers.size != prod(shape) or (numbers.ndim > 1 and list(numbers.shape) != shape):
        raise BadInput(
            f"'data' of tensor '{FEATURES}' has shape {list(numbers.shape)}", f"send it flat, or nested as {shape}"
        )
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which is refused by name
        return numbers.astype(np.float32).reshape(shape)


def _requested(request: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
    all_binary = _flag(request, "binary_data_output", default=False)
    outputs = request.get("outputs")
    if outputs is None or outputs == []:
        return tuple((name, all_binary) for name in _DATATYPES)
    if not (isinstance(outputs, list) and all(isinstance(output, dict) for output in outputs)):
        raise BadInput("'outputs' is not a list of objects", 'send it as [{"name": …}], or leave it out')
    names = [output.get("name") for output in outputs]
    for name in names:
        if name not in _DATATYPES or names.count(name) > 1:
            raise BadInput(
                f"'outputs' asks for {_short(name)}", f"ask for each of {', '.join(_DATATYPES)} at most once"
            )
    return tuple((output["name"], _flag(output, "binary_data", default=all_binary)) for output in outputs)


def _flag(of: dict[str, Any], name: str, *, default: bool) -> bool:
    value = _parameters(of).get(name, default)
    if not isinstance(value, bool):
        raise BadInput(f"parameter '{name}' is {_short(value)}", "send true or false")
    return value


def _short(value: Any) -> str:
    text = to_json(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}…"


def encode_response(
    request: InferRequest,
    *,
    model: str,
    version: int,
    outputs: NDArray[np.float32],
    decode: Callable[[NDArray[np.float32]], Predictions],
) -> tuple[bytes, Mapping[str, str]]:
    """Body and headers of a reply. outputs: raw ones of N rows; `decode` runs only if its result is asked for."""
    decoded = decode(outputs) if any(name != OUTPUTS for name, _ in request.outputs) else None
    tensors: list[dict[str, Any]] = []
    tensor_chunks: list[bytes] = []
    for name, binary in request.outputs:
        if name == OUTPUTS or decoded is None:
            array: NDArray[Any] = outputs
        else:
            array = np.array(decoded.values, dtype=object) if name == PREDICTION else decoded.confidence_N
        tensor: dict[str, Any] = {"name": name, "datatype": _DATATYPES[name], "shape": list(array.shape)}
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
    texts = [str(value).encode() for value in array]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def metadata(model: str, version: int, feature_shape: Sequence[int], output_shape: Sequence[int]) -> dict[str, Any]:
    """The model's tensors as the protocol's metadata names them; -1 stands for N."""
    shapes = {OUTPUTS: [-1, *output_shape], PREDICTION: [-1], CONFIDENCE: [-1]}
    return {
        "name": model,
        "versions": [str(version)],
        "platform": "pytorch",
        "inputs": [{"name": FEATURES, "datatype": "FP32", "shape": [-1, *feature_shape]}],
        "outputs": [{"name": name, "datatype": _DATATYPES[name], "shape": shape} for name, shape in shapes.items()],
    }
