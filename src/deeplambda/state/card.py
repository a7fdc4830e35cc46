"""The card of a model version, and where the version's artefacts lie on S3.

A version is code, learned state and weights, with the rows that it is checked on. Each lies under a key that follows
from the card and is loaded only when its SHA-256 is the one on the card; nothing is unpickled.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from deeplambda.adapters.s3 import ObjectStore
from deeplambda.features import SINGLE, Tensor
from deeplambda.learned import Format
from deeplambda.records.featurizer import featurizer_id

WEIGHTS, ONNX, STATE, KEPT_ROWS, REFERENCE, CARD = (
    *("weights.safetensors", "model.onnx", "state", "kept_rows.safetensors", "reference.json", "card.json"),
)


class Card(BaseModel):
    """Which data, which code, which model, when, how long, how sure.

    snapshot: of `lake.<application>.examples`. events_snapshot, labels_snapshot, withdrawals_snapshot: of those tables;
    None without labelled events in the data set, the last 0 where nothing was withdrawn. recent_from: broker's time,
    partition and offset of the first event of the split `recent`.
    rows: of the data set, by split and source: `examples` or `events`. parent: the version whose weights training began
    from; init_from: its name with its application's, as `digits/3`; made_anew: tensors that were not taken from it.
    features: what the model takes. metrics: of the test split. code_sha256: of the zip of the application's sources.
    state_format, state_sha256: of what `fit` learned, None where it has none.
    reference_sha256: of the histograms that live events are compared with.
    """

    model_config = ConfigDict(frozen=True)

    application: str
    version: int
    run: str
    dataset: str
    snapshot: int
    events_snapshot: int | None = None
    labels_snapshot: int | None = None
    withdrawals_snapshot: int | None = None
    recent_from: tuple[AwareDatetime, int, int] | None = None
    rows: dict[str, dict[str, int]] = {}
    parent: int | None = None
    init_from: str | None = None
    made_anew: tuple[str, ...] = ()
    code_version: str
    code_sha256: str | None = None
    hyperparameters: dict[str, Any]
    metrics: dict[str, float]
    parameters: int
    features: dict[str, Tensor]
    output_size: int
    weights_sha256: str
    onnx_sha256: str
    state_format: Format | None = None
    state_sha256: str | None = None
    kept_rows_sha256: str | None = None
    reference_sha256: str | None = None
    trained_rows: int
    training_s: float
    device: str
    torch_version: str
    created_at: AwareDatetime

    @model_validator(mode="before")
    @classmethod
    def _of_one_array(cls, written: Any) -> Any:
        """Cards of the first form know one float32 array, by its shape."""
        if isinstance(written, dict) and "features" not in written and "feature_shape" in written:
            known = {name: value for name, value in written.items() if name != "feature_shape"}
            return known | {"features": {SINGLE: {"dtype": "float32", "shape": written["feature_shape"]}}}
        return written

    @property
    def name(self) -> str:
        """The version with its application, as `digits/3`."""
        return f"{self.application}/{self.version}"

    @property
    def featurizer_id(self) -> str:
        """Names the code and the learned state whose features the model takes."""
        return featurizer_id(self.code_version, self.state_sha256)


def artefact_key(application: str, version: int, name: str) -> str:
    """Where one of a version's artefacts is kept."""
    return f"{application}/models/{version}/{name}"


def code_key(application: str, code_version: str) -> str:
    """Where the zip of an application's sources is kept; versions of one code share it."""
    return f"{application}/code/{code_version}.zip"


def fetch_card(store: ObjectStore, application: str, version: int) -> Card:
    """Raises: BadInput when there is no such version, CorruptObject, NotReady."""
    return Card.model_validate_json(store.get(artefact_key(application, version, CARD)))


class TrainerHyperparameters(BaseModel):
    """What the trainer takes of an application's hyperparameters; the others are arguments of `build_model`.

    gradient_clip: the largest norm of a step's gradient; 0 is none. patience: epochs without a better deciding metric
    on the split `validation` after which training ends; 0 is never.
    """

    model_config = ConfigDict(extra="ignore")

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    weight_decay: float = Field(ge=0, allow_inf_nan=False)
    seed: int = Field(ge=0)
    gradient_clip: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    patience: int = Field(default=0, ge=0)


def model_arguments(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are arguments of `build_model`, not of the trainer."""
    return {name: value for name, value in hyperparameters.items() if name not in TrainerHyperparameters.model_fields}
