"""The model service on the real stack: its protocols, the champion that it follows, and how it fails and returns."""

import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from pydantic_core import to_json

from deeplambda.adapters.kafka import consumer
from deeplambda.adapters.model_service import BODY_LIMIT_BYTES, ModelClient
from deeplambda.config import Settings
from deeplambda.errors import BadInput, NotReady
from deeplambda.records import topics
from deeplambda.records.runtime_metrics import RuntimeMetric
from deeplambda.service import tokens
from speed_layer.model_service.fast_path import ROUNDED
from tests.integration.own_model_service import OwnService, fp32_outputs, images, model_of
from tests.traffic import eventually


@pytest.fixture
def fresh(stack: Settings, tmp_path: Path) -> OwnService:
    """A service that has not been started, for an application without a champion."""
    return OwnService(stack, tmp_path)


def test_a_model_is_ready_from_its_first_champion_until_sigterm(fresh: OwnService) -> None:
    with fresh.running():
        assert eventually(lambda: fresh.request("GET", "/v2/health/ready").status == 200, timeout_s=20), (
            "an application that nobody has trained yet is no reason to send no request to the others"
        )
        waiting = fresh.request("GET", f"/v2/models/{fresh.name}/ready")
        assert waiting.status == 503
        assert waiting.headers["Content-Type"] == "application/problem+json"
        assert int(waiting.headers["Retry-After"]) >= 1
        assert f"deeplambda model promote {fresh.name}" in waiting.json()["remedy"]
        assert fresh.request("POST", fresh.infer_path, body=b"{}").status == 503
        fresh.promote(fresh.publish(model_of(1)))
        ready = f"/v2/models/{fresh.name}/ready"
        assert eventually(lambda: fresh.request("GET", ready).status == 200, timeout_s=20)
        worker = fresh.worker()
        assert fresh.stop() == 0
        assert not worker.is_running()


def test_start_without_kafka_waits_and_says_so(fresh: OwnService) -> None:
    with fresh.running(DEEPLAMBDA_KAFKA_BOOTSTRAP="127.0.0.1:1"):
        waiting = fresh.request("GET", "/v2/health/ready")
        assert waiting.status == 503
        assert "Kafka" in waiting.json()["detail"]


def test_champions_that_are_stale_within_seconds_of_silence_are_so_only_then(fresh: OwnService) -> None:
    with fresh.running(DEEPLAMBDA_STALE_CHAMPIONS_S="6"):
        ready = "/v2/health/ready"
        assert eventually(lambda: fresh.request("GET", ready).status == 200, timeout_s=20)
        silent = eventually(lambda: fresh.request("GET", ready).status != 200, timeout_s=8)
        assert not silent, "Kafka is there, so it should be asked that often"


def test_an_application_that_is_not_there_keeps_no_other_from_being_served(fresh: OwnService) -> None:
    with fresh.running(DEEPLAMBDA_APPLICATIONS=to_json(["nowhere", fresh.name]).decode()):
        fresh.promote(fresh.publish(model_of(1)))
        assert fresh.serves(1), fresh.log.read_text()
        waiting = fresh.request("GET", "/v2/models/nowhere/ready")
        assert (waiting.status, "'nowhere' has no champion yet" in waiting.json()["detail"]) == (503, True)


@pytest.mark.parametrize("rows", [1, 32, 300])
def test_client_gets_the_models_outputs(service: OwnService, rows: int) -> None:
    client = ModelClient(service.settings, service.name)
    features = images(rows)
    scored = client.predict(features, service.featurizer_id)
    assert set(scored.versions_N) == {1}
    expected = fp32_outputs(model_of(1), features)
    np.testing.assert_array_equal(scored.outputs.argmax(axis=1), expected.argmax(axis=1))
    share = np.abs(scored.outputs - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert share.max() < ROUNDED


def test_client_splits_what_one_body_cannot_hold(service: OwnService) -> None:
    rows = BODY_LIMIT_BYTES // (784 * 4) + 10
    features = {"features": np.zeros((rows, 1, 28, 28), dtype=np.float32)}
    scored = ModelClient(service.settings, service.name).predict(features, service.featurizer_id)
    assert len(scored.outputs) == rows


def test_client_says_what_the_service_refuses(service: OwnService) -> None:
    client = ModelClient(service.settings, service.name)
    with pytest.raises(BadInput, match="NaN"):
        client.predict({"features": np.full((1, 1, 28, 28), np.nan, dtype=np.float32)}, service.featurizer_id)
    with pytest.raises(BadInput, match="shape"):
        client.predict({"features": np.zeros((1, 28, 28), dtype=np.float32)}, service.featurizer_id)
    with pytest.raises(BadInput, match="no model 'cats'"):
        ModelClient(service.settings, "cats").predict(images(1), service.featurizer_id)


@pytest.mark.parametrize("binary", [True, False])
def test_stock_triton_client(service: OwnService, binary: bool) -> None:
    host, port = service.address
    with triton.InferenceServerClient(f"{host}:{port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(service.name)
        assert client.is_model_ready(service.name, "1")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        assert client.get_model_metadata(service.name)["inputs"][0]["shape"] == [-1, 1, 28, 28]
        features = images(3)
        tensor = triton.InferInput("features", [3, 1, 28, 28], "FP32")
        tensor.set_data_from_numpy(features["features"], binary_data=binary)
        everything = client.infer(service.name, [tensor], model_version="1", request_id="q")
        expected = fp32_outputs(model_of(1), features)
        assert everything.get_response()["model_version"] == "1"
        assert everything.get_response()["id"] == "q"
        np.testing.assert_allclose(everything.as_numpy("outputs"), expected, atol=ROUNDED * np.abs(expected).max())
        assert [int(label) for label in everything.as_numpy("prediction")] == expected.argmax(axis=1).tolist()
        wanted = [
            triton.InferRequestedOutput("confidence"),
            triton.InferRequestedOutput("prediction", binary_data=False),
        ]
        some = client.infer(service.name, [tensor], outputs=wanted)
        assert some.as_numpy("outputs") is None
        assert some.as_numpy("prediction").tolist() == [str(label) for label in expected.argmax(axis=1)]
        assert np.all((some.as_numpy("confidence") > 0.1) & (some.as_numpy("confidence") <= 1))
        with pytest.raises(triton.InferenceServerException, match="no model 'cats'"):
            client.infer("cats", [tensor])


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_stock_triton_clients_extensions(service: OwnService, coding: str) -> None:
    features = images(3)
    expected = fp32_outputs(model_of(1), features)
    with triton.InferenceServerClient("{}:{}".format(*service.address)) as client:
        tensor = triton.InferInput("features", [3, 1, 28, 28], "FP32")
        tensor.set_data_from_numpy(features["features"])
        best = triton.InferRequestedOutput("outputs", class_count=2)
        found = client.infer(
            service.name,
            [tensor],
            outputs=[best],
            timeout=10_000_000,
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        ).as_numpy("outputs")
        assert found.shape == (3, 2)
        assert [int(text.split(b":")[1]) for text in found[:, 0]] == expected.argmax(axis=1).tolist()
        (statistics,) = client.get_inference_statistics(service.name)["model_stats"]
        assert statistics["inference_stats"]["success"]["count"] >= 1
        assert client.get_inference_statistics()["model_stats"][0]["name"] == service.name
        configuration = client.get_model_config(service.name, "1")
        assert configuration["input"] == [{"name": "features", "data_type": "TYPE_FP32", "dims": [1, 28, 28]}]
        listed = client.get_model_repository_index()
        assert [(model["version"], model["state"]) for model in listed] == [("1", "READY")]
        with pytest.raises(triton.InferenceServerException, match="needs a token"):
            client.unload_model(service.name)
        token = tokens.issue(service.settings, "operator", "test", timedelta(minutes=5))
        operator = {"Authorization": f"Bearer {token}"}
        client.unload_model(service.name, headers=operator)
        assert not client.is_model_ready(service.name)
        assert f'model_version{{application="{service.name}"}} 0.0' in service.request("GET", "/metrics").data.decode()
        assert client.is_server_ready(), "what an operator has unloaded is no reason to send nothing to the others"
        client.load_model(service.name, headers=operator)
        assert client.is_model_ready(service.name, "1")
        with pytest.raises(triton.InferenceServerException):
            client.get_log_settings()


def test_raw_events_are_predicted_as_the_transform_and_the_model_say(service: OwnService) -> None:
    pixels = bytes(range(196)) * 4
    reply = service.request("POST", service.predict_path, json={"instances": [{"image": b64encode(pixels).decode()}]})
    assert reply.status == 200
    assert reply.headers["X-Model-Version"] == str(reply.json()["model_version"]) == "1"
    features = ((np.frombuffer(pixels, np.uint8) / 255 - 0.1307) / 0.3081).astype(np.float32).reshape(1, 1, 28, 28)
    expected = str(fp32_outputs(model_of(1), {"features": features}).argmax())
    assert [row["prediction"] for row in reply.json()["predictions"]] == [expected]


def test_metadata_has_the_events_schema_and_the_cards_facts(service: OwnService) -> None:
    described = service.request("GET", f"/v1/models/{service.name}").json()
    assert described["event_schema"]["required"] == ["event_id", "occurred_at", "image"]
    assert described["metrics"] == {"accuracy": 0.1}


def test_figures_reach_prometheus_and_kafka(service: OwnService) -> None:
    ModelClient(service.settings, service.name).predict(images(5), service.featurizer_id)
    exposed = service.request("GET", "/metrics").data.decode()
    assert f'deeplambda_model_service_predictions_total{{application="{service.name}"' in exposed
    assert f'deeplambda_model_service_model_version{{application="{service.name}"}} 1.0' in exposed
    reader = consumer(service.settings, topics.METRICS)
    found: dict[str, RuntimeMetric] = {}

    def all_reported() -> bool:
        for records in reader.poll(timeout_ms=500).values():
            of_models = [record.value for record in records if record.key == b"speed.model"]
            for figure in map(RuntimeMetric.model_validate_json, of_models):
                if figure.application == service.name:
                    found[figure.name] = figure
        return {"requests", "errors", "predictions", "latency_p50", "latency_p99"} <= set(found)

    assert eventually(all_reported, timeout_s=30)
    reader.close()
    assert (found["requests"].layer, found["requests"].part) == ("speed", "model")
    assert 0 < found["latency_p50"].value <= found["latency_p99"].value


def test_swap_under_load_fails_no_request_and_mixes_no_versions(service: OwnService) -> None:
    features = images(8)
    versions = [1, service.publish(model_of(2)), service.publish(model_of(3))]
    expected = {version: fp32_outputs(model_of(seed), features) for seed, version in enumerate(versions, start=1)}
    done, featurizer_id = threading.Event(), service.featurizer_id

    def load() -> list[int]:
        client, seen = ModelClient(service.settings, service.name, patience_s=0), []
        while not done.is_set():
            scored = client.predict(features, featurizer_id)  # with no patience, the first failure fails the test
            (version,) = set(scored.versions_N)
            truth = expected[version]
            assert np.abs(scored.outputs - truth).max() < ROUNDED * np.abs(truth).max()
            seen.append(version)
        return seen

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load) for _ in range(4)]
        try:
            for version in versions[1:]:
                service.promote(version)
                assert service.serves(version)
        finally:
            done.set()
        for seen in (future.result() for future in loads):
            assert seen == sorted(seen), "no client sees an older version after a newer one"
            assert seen[0] == versions[0]


def test_client_waits_out_a_restart_after_kill_9_and_a_cold_start_knows_its_champion(fresh: OwnService) -> None:
    with fresh.running():
        fresh.promote(fresh.publish(model_of(1)))
        assert fresh.serves(1)
        client = ModelClient(fresh.settings, fresh.name, patience_s=60)
        expected = client.predict(images(4), fresh.featurizer_id).outputs
        fresh.kill()
        restart = threading.Thread(target=fresh.start)
        restart.start()
        np.testing.assert_array_equal(client.predict(images(4), fresh.featurizer_id).outputs, expected)
        restart.join()
        fresh.worker().kill()  # the worker alone: its parent makes another
        np.testing.assert_array_equal(client.predict(images(4), fresh.featurizer_id).outputs, expected)


def test_client_gives_up_on_a_service_that_hangs_and_gets_through_when_it_goes_on(service: OwnService) -> None:
    worker, serving = service.worker(), service.version()
    worker.suspend()
    try:
        with pytest.raises(NotReady, match="timed out"):
            ModelClient(service.settings, service.name, patience_s=0).predict(images(1), service.featurizer_id)
        patient = ThreadPoolExecutor(1).submit(
            ModelClient(service.settings, service.name).predict, images(1), service.featurizer_id
        )
    finally:
        worker.resume()
    assert set(patient.result(timeout=30).versions_N) == {serving}
