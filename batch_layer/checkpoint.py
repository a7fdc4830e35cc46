"""Checkpoints of a training run, on S3: what a killed run goes on from.

A checkpoint is tensors (safetensors, named after their SHA-256) and a description (JSON) that names them, and is
written last: a write that was cut off leaves tensors that no description names. Nothing is unpickled.
"""

import hashlib
import logging
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json
from safetensors import SafetensorError
from safetensors.torch import load, save

from deeplambda.adapters.s3 import ObjectStore
from deeplambda.errors import BadInput, CorruptObject
from deeplambda.features import Tensor as FeatureTensor
from deeplambda.records.lifecycle import EpochTrained
from deeplambda.state.card import Card

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)


class Checkpoint(BaseModel):
    """A run after a whole epoch. epochs: the records so far; the last one is of this checkpoint's epoch.

    features: what the model takes.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    epochs: list[EpochTrained]
    features: dict[str, FeatureTensor]
    tensors_sha256: str

    @property
    def epoch(self) -> int:
        """Epochs that are done, from 1."""
        return self.epochs[-1].epoch


def run_id(dataset: str, code_version: str, hyperparameters: dict[str, Any], parent: Card | None = None) -> str:
    """Equal for equal data, code, hyperparameters (the seed is one) and parent: 16 hex digits.

    parent: the version whose weights the run begins from.
    """
    begins_from = [] if parent is None else [parent.name]
    identity = to_json([dataset, code_version, sorted(hyperparameters.items()), *begins_from])
    return hashlib.sha256(identity).hexdigest()[:16]


def encode(tensors: "dict[str, Tensor]") -> bytes:
    """Tensors on the CPU, by name, as safetensors."""
    content: bytes = save(tensors)
    return content


def decode(raw: bytes, name: str) -> "dict[str, Tensor]":
    """Raises: CorruptObject; `name` says of which object."""
    try:
        tensors: dict[str, Tensor] = load(raw)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise CorruptObject(f"{name} is not a whole safetensors file: {exc}") from exc
    return tensors


def run_prefix(application: str, run: str) -> str:
    """What the keys of all that is kept of a run begin with."""
    return f"{application}/runs/{run}/"


def save_checkpoint(store: ObjectStore, application: str, checkpoint: Checkpoint, encoded: bytes) -> None:
    """Store the tensors first, then the description that names them. Raises: NotReady."""
    store.put(_tensors_key(application, checkpoint), encoded)
    store.put(_description_key(application, checkpoint.run, checkpoint.epoch), to_json(checkpoint))


def newest_epoch(store: ObjectStore, application: str, run: str) -> int:
    """The last epoch with a whole checkpoint; 0 when there is none. One that is corrupt is named in the log and the one
    before it taken.

    Raises: NotReady.
    """
    for key in reversed(_descriptions(store, application, run)):
        try:
            return _fetched(store, application, key)[0].epoch
        except (BadInput, ValidationError) as exc:  # BadInput: the tensors are gone, or CorruptObject
            _log.warning("checkpoint %s of %s is not whole (%s); its epoch is trained again", key, application, exc)
    return 0


def epochs_trained(store: ObjectStore, application: str, run: str) -> list[EpochTrained]:
    """What the newest description tells, whether its tensors are whole or not. Raises: NotReady."""
    keys = _descriptions(store, application, run)
    return Checkpoint.model_validate_json(store.get(keys[-1])).epochs if keys else []


def fetch_checkpoint(
    store: ObjectStore, application: str, run: str, epoch: int
) -> "tuple[Checkpoint, dict[str, Tensor]]":
    """That of one epoch. Raises: CorruptObject, BadInput when it is gone, NotReady."""
    return _fetched(store, application, _description_key(application, run, epoch))


def _descriptions(store: ObjectStore, application: str, run: str) -> list[str]:
    stored = store.list(f"{run_prefix(application, run)}checkpoint-")
    return sorted(each.key for each in stored if each.key.endswith(".json"))


def _fetched(store: ObjectStore, application: str, key: str) -> "tuple[Checkpoint, dict[str, Tensor]]":
    checkpoint = Checkpoint.model_validate_json(store.get(key))
    tensors_key = _tensors_key(application, checkpoint)
    return checkpoint, decode(store.get(tensors_key, sha256=checkpoint.tensors_sha256), tensors_key)


def refusal_key(application: str, run: str) -> str:
    """Where one of several workers says why it has ended."""
    return f"{run_prefix(application, run)}refusal.json"


def _description_key(application: str, run: str, epoch: int) -> str:
    return f"{run_prefix(application, run)}checkpoint-{epoch:05}.json"


def _tensors_key(application: str, checkpoint: Checkpoint) -> str:
    name = f"checkpoint-{checkpoint.epoch:05}-{checkpoint.tensors_sha256[:12]}.safetensors"
    return f"{run_prefix(application, checkpoint.run)}{name}"
