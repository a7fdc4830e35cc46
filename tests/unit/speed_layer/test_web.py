"""The model service names the row that its model fails on, and the code whose features it takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flask.testing import FlaskClient

from deeplambda.adapters.model_service import FEATURIZER_HEADER
from deeplambda.config import Settings
from deeplambda.records.featurizer import Featurizer
from examples.digits.application import Digits
from speed_layer.model_service.champions import Champion, ChampionWatch
from speed_layer.model_service.fast_path import FastPath
from speed_layer.model_service.metrics import ServiceMetrics
from speed_layer.model_service.web import Champions, create_app
from tests.unit.speed_layer.test_service_metrics import CARD


def forward(rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Fails on a first pixel of 1, and gives NaN on one of 2."""
    first_N = rows["features"][:, 0, 0, 0]
    if (first_N == 1).any():
        raise IndexError("index out of range")
    return torch.where(first_N == 2, torch.nan, first_N).unsqueeze(1).expand(-1, 10)


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    settings, featurizer = Settings(data_dir=tmp_path), Featurizer(Digits(), code_version="c1")
    watch = ChampionWatch(settings, "digits", on_swap=lambda _: None, on_failure=lambda _: None)
    path = FastPath(variant="fp32", forward=forward, exact=forward, rescores=False)
    watch.current = Champion(featurizer=featurizer, card=CARD, path=path, output_shape=(10,))
    return create_app(settings, Champions({"digits": watch}), ServiceMetrics(("digits",))).test_client()


def infer(client: FlaskClient, first_pixels: list[float], **headers: str) -> Any:
    data = [[[[first] + [0.0] * 27] + [[0.0] * 28] * 27] for first in first_pixels]
    tensor = {"name": "features", "datatype": "FP32", "shape": [len(data), 1, 28, 28], "data": data}
    return client.post("/v2/models/digits/infer", json={"inputs": [tensor]}, headers=headers)


@pytest.mark.parametrize(
    ("bad", "named"), [(1, r"row 5: the model raised IndexError: index out of range"), (2, "row 5")]
)
def test_the_row_that_a_model_fails_on_is_named(client: FlaskClient, bad: int, named: str) -> None:
    reply = infer(client, [0, 0, 0, 3, 3, bad, 0])
    assert (reply.status_code, reply.json["detail"].startswith(named)) == (422, True), reply.json
    assert infer(client, [0, 0, 3]).status_code == 200


def test_features_of_other_code_are_refused_with_the_name_of_the_code_that_serves(client: FlaskClient) -> None:
    reply = infer(client, [0], **{FEATURIZER_HEADER: "c0-ab12"})
    assert (reply.status_code, reply.json["featurizer"], reply.json["model_version"]) == (409, "c1", 1)
    assert infer(client, [0], **{FEATURIZER_HEADER: "c1"}).status_code == 200
    assert infer(client, [0]).status_code == 200, "stock clients say nothing of code"
