"""A model version: its card, and its artefacts on S3 under `<application>/models/<version>/`.

A model is only ever loaded from safetensors whose SHA-256 is the one on its card; nothing is unpickled.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.errors import CorruptObject, UnfitModel

if TYPE_CHECKING:
    import torch

WEIGHTS, ONNX, CARD = "weights.safetensors", "model.onnx", "card.json"


class Card(BaseModel):
    """Which data, which code, which model, when, how long, how sure.

    snapshot: of `lake.<application>.examples`. feature_shape: of one row. metrics: of the test split.
    """

    model_config = ConfigDict(frozen=True)

    application: str
    version: int
    run: str
    dataset: str
    snapshot: int
    code_version: str
    hyperparameters: dict[str, Any]
    metrics: dict[str, float]
    parameters: int
    feature_shape: list[int]
    output_size: int
    weights_sha256: str
    onnx_sha256: str
    trained_rows: int
    training_s: float
    device: str
    torch_version: str
    created_at: AwareDatetime


def artefact_key(application: str, version: int, name: str) -> str:
    """Where one of a version's artefacts is kept."""
    return f"{application}/models/{version}/{name}"


def fetch_card(store: ObjectStore, application: str, version: int) -> Card:
    """Raises: BadInput when there is no such version, CorruptObject, NotReady."""
    return Card.model_validate_json(store.get(artefact_key(application, version, CARD)))


class TrainerHyperparameters(BaseModel):
    """What the trainer takes of an application's hyperparameters; the others are arguments of `build_model`."""

    model_config = ConfigDict(extra="ignore")

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    weight_decay: float = Field(ge=0, allow_inf_nan=False)
    seed: int = Field(ge=0)


def model_arguments(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are arguments of `build_model`, not of the trainer."""
    return {name: value for name, value in hyperparameters.items() if name not in TrainerHyperparameters.model_fields}


def fetch_model(store: ObjectStore, application: Application, card: Card) -> "torch.nn.Module":
    """The version's model in evaluation mode, on the CPU, in fp32.

    Raises: CorruptObject when hash or layout differ from the card, UnfitModel when a weight is not finite, NotReady.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    weights = store.get(artefact_key(card.application, card.version, WEIGHTS), sha256=card.weights_sha256)
    name = f"{card.application}/{card.version}"
    model = application.build_model(**model_arguments(card.hyperparameters))
    try:
        tensors = load(weights)
        model.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as exc:
        raise CorruptObject(f"the weights of {name} do not fit its model: {exc}", "train and publish again") from exc
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise UnfitModel(f"{name} has weights that are not finite", "promote another version")
    return model.eval().requires_grad_(False)
