"""The Open Inference Protocol's codec: JSON and binary tensors say the same, and each mistake is named."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic_core import to_json
from werkzeug.exceptions import RequestEntityTooLarge

from deeplambda.adapters.model_service import DATATYPES, ROWS_LIMIT, _encode
from deeplambda.errors import BadInput, InvalidEvent
from deeplambda.features import Tensor
from deeplambda.objective import Classification, Predictions
from speed_layer.model_service.jobs import Scored
from speed_layer.model_service.oip import InferRequest, decode_request, encode_response, metadata, reply_bytes

WANTED = {"features": Tensor(shape=(1, 2, 2))}
ROWS = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
TENSOR = {"name": "features", "shape": [2, 1, 2, 2], "datatype": "FP32"}


def as_json(tensor: Any = None, **more: Any) -> bytes:
    return to_json({"inputs": [TENSOR | {"data": ROWS.ravel().tolist()} if tensor is None else tensor]} | more)


def as_binary(features: NDArray[np.float32] = ROWS, **more: Any) -> tuple[bytes, str]:
    tensor = TENSOR | {"parameters": {"binary_data_size": features.nbytes}}
    head = to_json({"inputs": [tensor]} | more)
    return head + features.tobytes(), str(len(head))


def asking(*outputs: tuple[str, bool], identity: str | None = None) -> InferRequest:
    return InferRequest(id=identity, features={"features": ROWS}, outputs=outputs)


def reply(request: InferRequest, outputs_NC: NDArray[np.float32]) -> tuple[bytes, dict[str, str]]:
    scored = Scored(outputs=outputs_NC, predictions=Classification("abc").decode(outputs_NC))
    body, headers = encode_response(request, model="digits", version=7, scored=scored)
    return body, dict(headers)


LOGITS = np.array([[9, 0, 0], [0, 0, 9]], dtype=np.float32)


def test_json_flat_json_nested_and_binary_are_the_same_features() -> None:
    nested = as_json(TENSOR | {"data": ROWS.tolist()})
    body, header = as_binary()
    for decoded in (
        decode_request(as_json(), None, WANTED),
        decode_request(nested, None, WANTED),
        decode_request(body, header, WANTED),
    ):
        assert decoded.features["features"].dtype == np.float32
        np.testing.assert_array_equal(decoded.features["features"], ROWS)


def test_binary_features_are_a_view_of_the_body() -> None:
    body, header = as_binary()
    assert np.shares_memory(
        decode_request(body, header, WANTED).features["features"], np.frombuffer(body, dtype=np.uint8)
    )


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, (("outputs", False), ("prediction", False), ("confidence", False))),
        ({"outputs": []}, (("outputs", False), ("prediction", False), ("confidence", False))),
        (
            {"parameters": {"binary_data_output": True}},
            (("outputs", True), ("prediction", True), ("confidence", True)),
        ),
        ({"outputs": [{"name": "prediction"}]}, (("prediction", False),)),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "confidence", "parameters": {"binary_data": False}}, {"name": "outputs"}],
            },
            (("confidence", False), ("outputs", True)),
        ),
    ],
)
def test_the_request_chooses_outputs_and_their_form(more: dict[str, Any], expected: object) -> None:
    assert decode_request(as_json(**more), None, WANTED).outputs == expected


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (TENSOR | {"shape": [2, 4], "data": []}, "shape"),
        (TENSOR | {"shape": [0, 1, 2, 2], "data": []}, "shape"),
        (TENSOR | {"shape": [2.0, 1, 2, 2], "data": []}, "shape"),
        (TENSOR | {"shape": "2", "data": []}, "shape"),
        (TENSOR | {"datatype": "FP64", "data": []}, "FP32"),
        (TENSOR | {"name": "image", "data": []}, "'features'"),
        (TENSOR, "data"),
        (TENSOR | {"data": [1.0, 2.0]}, "shape"),
        (TENSOR | {"data": [[1.0, 2.0], [3.0]]}, "ragged"),
        (TENSOR | {"data": ["1"] * 8}, "number"),
        (TENSOR | {"data": [None] * 8}, "number"),
        (TENSOR | {"data": [True] * 8}, "number"),
        (TENSOR | {"data": [{}] * 8}, "number"),
        (TENSOR | {"data": [10**400] * 8}, "number"),
        (TENSOR | {"data": [1.0, True] * 4}, "number"),
        (TENSOR | {"data": [[1.0] * 7 + ["1"]]}, "number"),
        (TENSOR | {"parameters": [], "data": []}, "parameters"),
        (TENSOR | {"parameters": {"binary_data_size": 31}}, "32 bytes"),
        (TENSOR | {"parameters": {"binary_data_size": 32}}, "0 bytes follow"),
        (TENSOR | {"parameters": {"binary_data_size": 32}, "data": []}, "one of the two"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(tensor: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        decode_request(as_json(tensor), None, WANTED)


def test_more_rows_than_a_request_may_have_are_too_many() -> None:
    body, header = as_binary()
    many = body.replace(b'"shape":[2,', f'"shape":[{ROWS_LIMIT + 1},'.encode())
    with pytest.raises(RequestEntityTooLarge, match=f"at most {ROWS_LIMIT}"):
        decode_request(many, str(int(header) + len(many) - len(body)), WANTED)


def test_long_texts_among_numbers_take_no_memory() -> None:
    tracemalloc.start()
    with pytest.raises(BadInput):
        decode_request(as_json(TENSOR | {"data": ["x" * 2**20] + [""] * 99}), None, WANTED)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 2**24


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 10_000 + b"]" * 10_000, "200 deep"),
        (b"[]", "object"),
        (b"{}", "inputs"),
        (b'{"inputs": {}}', "inputs"),
        (b'{"inputs": [1]}', "inputs"),
        (b'{"inputs": []}', "exactly one"),
        (as_json(outputs=[{"name": "logits"}]), "logits"),
        (as_json(outputs=[{"name": "outputs"}, {"name": "outputs"}]), "at most once"),
        (as_json(outputs="outputs"), "list of objects"),
        (as_json(outputs=[{"name": "outputs", "parameters": {"binary_data": 1}}]), "true or false"),
        (as_json(parameters={"binary_data_output": "yes"}), "true or false"),
        (as_json(id=5), "'id'"),
    ],
)
def test_a_wrong_request_is_refused_by_name(body: bytes, named: str) -> None:
    with pytest.raises(BadInput, match=named) as refused:
        decode_request(body, None, WANTED)
    assert refused.value.remedy


@pytest.mark.parametrize("header", ["", "-1", "1.5", "x", "²", "9" * 30, "100000"])
def test_a_header_length_that_cannot_be_is_refused(header: str) -> None:
    body, _ = as_binary()
    with pytest.raises(BadInput, match="Inference-Header-Content-Length"):
        decode_request(body, header, WANTED)


def test_a_tensor_that_is_cut_off_is_refused() -> None:
    body, header = as_binary()
    with pytest.raises(BadInput, match="31 bytes follow"):
        decode_request(body[:-1], header, WANTED)


def test_bytes_that_no_tensor_claims_are_refused() -> None:
    head = as_json()
    with pytest.raises(BadInput, match="binary_data_size"):
        decode_request(head + b"1234", str(len(head)), WANTED)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_row(value: float) -> None:
    features = ROWS.copy()
    features[1, 0, 1, 1] = value
    body, header = as_binary(features)
    with pytest.raises(InvalidEvent, match="row 1"):
        decode_request(body, header, WANTED)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e300", "-1e39"])
def test_a_json_number_beyond_fp32_is_refused(literal: str) -> None:
    body = as_json().replace(b"7.0", literal.encode())
    with pytest.raises(InvalidEvent, match="row 1"):
        decode_request(body, None, WANTED)


def test_json_reply_names_model_version_id_and_tensors() -> None:
    body, headers = reply(asking(("outputs", False), ("prediction", False), identity="q-1"), LOGITS)
    assert headers == {"Content-Type": "application/json"}
    assert json.loads(body) == {
        "model_name": "digits",
        "model_version": "7",
        "id": "q-1",
        "outputs": [
            {"name": "outputs", "datatype": "FP32", "shape": [2, 3], "data": [9, 0, 0, 0, 0, 9]},
            {"name": "prediction", "datatype": "BYTES", "shape": [2], "data": ["a", "c"]},
        ],
    }


def test_binary_reply_holds_its_tensors_in_order_after_the_json() -> None:
    body, headers = reply(asking(("prediction", True), ("outputs", True), ("confidence", False)), LOGITS)
    end = int(headers["Inference-Header-Content-Length"])
    prediction, outputs, confidence = json.loads(body[:end])["outputs"]
    strings = b"\x01\x00\x00\x00a\x01\x00\x00\x00c"
    assert prediction["parameters"] == {"binary_data_size": len(strings)}
    assert outputs["parameters"] == {"binary_data_size": LOGITS.nbytes}
    assert body[end:] == strings + LOGITS.tobytes()
    assert confidence["data"] == pytest.approx([0.99975, 0.99975], abs=1e-4)


def test_a_confidence_that_does_not_exist_is_null() -> None:
    body, _ = encode_response(
        asking(("confidence", False)),
        model="m",
        version=1,
        scored=Scored(outputs=LOGITS, predictions=Predictions(values=["1.5"] * 2, confidence_N=np.full(2, np.nan))),
    )
    assert json.loads(body)["outputs"][0]["data"] == [None, None]


def test_metadata_describes_the_tensors() -> None:
    described = metadata("digits", 7, {"features": Tensor(shape=(1, 28, 28))}, (10,))
    assert described["versions"] == ["7"]
    assert described["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
    assert [(tensor["name"], tensor["shape"]) for tensor in described["outputs"]] == [
        ("outputs", [-1, 10]),
        ("prediction", [-1]),
        ("confidence", [-1]),
    ]


SEVERAL = {"words": Tensor("int64", (2,)), "age": Tensor(), "known": Tensor("bool", (1,)), "half": Tensor("float16")}
VALUES: dict[str, NDArray[Any]] = {
    "words": np.array([[12_345, 2**53 + 1], [-1, 257]]),
    "age": np.array([0.1, 16_777_216], np.float32),
    "known": np.array([[True], [False]]),
    "half": np.array([0.5, 2], np.float16),
}


def test_named_tensors_of_every_kind_come_through_json_and_binary_as_they_were() -> None:
    body, headers = _encode(VALUES)
    inputs = [
        {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": array.shape, "data": array.tolist()}
        for name, array in reversed(VALUES.items())
    ]
    for decoded in (
        decode_request(body, headers["Inference-Header-Content-Length"], SEVERAL),
        decode_request(to_json({"inputs": inputs}), None, SEVERAL),
    ):
        assert decoded.features.keys() == VALUES.keys()
        for name, array in VALUES.items():
            np.testing.assert_array_equal(decoded.features[name], array)
            assert decoded.features[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"data": [1.5] * 4}, "no INT64"),
        ({"data": [2**63] * 4}, "INT64|number"),
        ({"data": [True] * 4}, "not a number"),
        ({"datatype": "INT32", "data": [1] * 4}, "send INT64"),
        ({"name": "sentences", "data": [1] * 4}, "exactly 4 tensors"),
        ({"shape": [1, 2], "data": [1] * 2}, "different numbers of rows"),
    ],
)
def test_a_wrong_one_of_several_tensors_is_refused_by_name(changed: dict[str, Any], named: str) -> None:
    inputs = [
        {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": array.shape, "data": array.tolist()}
        for name, array in VALUES.items()
    ]
    with pytest.raises(BadInput, match=named):
        decode_request(to_json({"inputs": [inputs[0] | changed, *inputs[1:]]}), None, SEVERAL)


def test_json_that_no_number_of_rows_could_need_is_refused_unparsed() -> None:
    lists, padding = b"[" + b"[]," * 100_000 + b"[]]", b" " * (ROWS_LIMIT * 4 * 32 + 64 * 1024)
    with pytest.raises(BadInput, match="more lists"):
        decode_request(as_json()[:-1] + b', "id": ' + lists + b"}", None, WANTED)
    with pytest.raises(BadInput, match="more lists or objects"):
        decode_request(as_json(outputs=[{}] * 30_000), None, WANTED)
    with pytest.raises(RequestEntityTooLarge, match="rows need"):
        decode_request(as_json() + padding, None, WANTED)


@pytest.mark.slow
def test_as_many_rows_as_there_may_be_are_taken_however_they_are_written() -> None:
    numbers = np.full((ROWS_LIMIT, 1, 2, 2), -1.2345678901234567e-300)
    for data in (numbers.ravel().tolist(), numbers.tolist()):
        tensor = TENSOR | {"shape": list(numbers.shape), "data": data}
        body = json.dumps({"inputs": [tensor]}, separators=(" , ", " : ")).encode()
        assert len(decode_request(body, None, WANTED).features["features"]) == ROWS_LIMIT


def test_a_name_that_is_no_text_and_parameters_of_null() -> None:
    with pytest.raises(BadInput, match="asks for"):
        decode_request(as_json(outputs=[{"name": []}]), None, WANTED)
    tensor = TENSOR | {"data": ROWS.ravel().tolist(), "parameters": None}
    asked = decode_request(
        as_json(tensor, parameters=None, outputs=[{"name": "outputs", "parameters": None}]), None, WANTED
    )
    assert asked.outputs == (("outputs", False),)


def test_whole_numbers_are_numbers_however_large() -> None:
    numbers = [2**64, -(2**70), 10**30, *range(5)]
    found = decode_request(as_json(TENSOR | {"data": numbers}), None, WANTED).features["features"]
    np.testing.assert_allclose(found.ravel(), np.array(numbers, np.float64), rtol=1e-7)
    for beyond in (10**40, 10**400):
        text = as_json(TENSOR | {"data": [0] * 8}).replace(b"[0,", b"[%d," % beyond)
        with pytest.raises(InvalidEvent, match="beyond FP32"):
            decode_request(text, None, WANTED)


def test_a_number_of_rows_is_not_echoed_whole() -> None:
    text = as_json(TENSOR | {"data": []}).replace(b'"shape":[2,', b'"shape":[%d,' % 10**4000)
    with pytest.raises(RequestEntityTooLarge) as refused:
        decode_request(text, None, WANTED)
    assert len(refused.value.description) < 200


def test_long_names_of_classes_count_for_what_a_reply_takes() -> None:
    rows = {"features": np.zeros((ROWS_LIMIT, 1), np.float32)}
    request = InferRequest(id=None, features=rows, outputs=(("outputs", False),), likeliest=10)
    assert reply_bytes(request, (10,), name_bytes=5) > 0
    with pytest.raises(RequestEntityTooLarge):
        reply_bytes(request, (10,), name_bytes=257)
