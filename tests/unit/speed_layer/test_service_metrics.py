"""The gauge that replicas of the model service follow: requests that wait for the model, or are in it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from deeplambda.config import Settings
from deeplambda.features import Tensor
from deeplambda.records.featurizer import Featurizer
from deeplambda.state.card import Card
from examples.digits.application import Digits
from speed_layer.model_service.champions import Champion, ChampionWatch
from speed_layer.model_service.fast_path import FastPath
from speed_layer.model_service.metrics import ServiceMetrics
from speed_layer.model_service.serving import Champions
from speed_layer.model_service.web import create_app

GAUGE = "deeplambda_model_service_requests_in_progress"
CARD = Card(
    application="digits",
    version=1,
    run="r1",
    dataset="d1",
    snapshot=1,
    code_version="c1",
    hyperparameters={},
    metrics={},
    parameters=1,
    features={"features": Tensor(shape=(1, 28, 28))},
    output_size=10,
    weights_sha256="ab",
    onnx_sha256="cd",
    trained_rows=1,
    training_s=1.0,
    device="cpu",
    torch_version=torch.__version__,
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
)
REQUEST = {
    "inputs": [
        {"name": "features", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": np.zeros(28 * 28).tolist()},
    ]
}


def test_requests_in_progress_are_counted_until_they_are_answered_or_fail(tmp_path: Path) -> None:
    settings, metrics = Settings(data_dir=tmp_path), ServiceMetrics(("digits",))
    outputs, seen = torch.zeros(1, 10), []

    def forward(rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        seen.append(metrics.registry.get_sample_value(GAUGE))
        return outputs.expand(len(rows["features"]), 10)

    watch = ChampionWatch(settings, "digits", on_swap=lambda *_: None, on_failure=lambda _: None)
    path = FastPath(variant="fp32", forward=forward, exact=forward, rescores=False)
    watch.current = Champion(
        featurizer=Featurizer(Digits(), code_version="c1"), card=CARD, path=path, output_shape=(10,)
    )
    client = create_app(settings, Champions({"digits": watch}), metrics).test_client()

    assert client.post("/v2/models/digits/infer", json=REQUEST).status_code == 200
    outputs = torch.full((1, 10), torch.nan)
    assert client.post("/v2/models/digits/infer", json=REQUEST).status_code == 422
    assert set(seen) == {1.0}
    assert metrics.registry.get_sample_value(GAUGE) == 0.0
    assert f"{GAUGE} 0.0" in client.get("/metrics").text


def test_what_was_refused_unread_is_counted_and_took_no_time() -> None:
    metrics = ServiceMetrics(("digits",))
    metrics.shed("POST", "digits")
    window = metrics.take_windows()["digits"]
    assert (window.requests, window.errors, window.latencies_ms) == (1, 1, [])
    assert 'requests_total{method="POST",route="shed",status="429"} 1.0' in metrics.exposition().decode()
