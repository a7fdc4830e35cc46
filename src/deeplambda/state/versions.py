"""Loading a model version by its card: code, learned state, weights and kept rows, each by its hash from S3."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.config import Settings
from deeplambda.errors import BadInput, CorruptObject, UnfitModel
from deeplambda.learned import EncodedState, decode_state
from deeplambda.loading import PackedApplication, pack_application, unpack_application
from deeplambda.records.featurizer import Featurizer
from deeplambda.state.card import KEPT_ROWS, STATE, WEIGHTS, Card, artefact_key, code_key, model_arguments
from deeplambda.state.kept_rows import KeptRows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class LoadedCode:
    """A version's code with what it learned: all that turns events into features. packed: to send it to workers."""

    packed: PackedApplication
    featurizer: Featurizer

    @property
    def application(self) -> Application:
        return self.featurizer.application


def load_code(store: ObjectStore, settings: Settings, card: Card) -> LoadedCode:
    """The version's own code, whatever is deployed, with its learned state.

    Raises: CorruptObject, BadInput when an artefact is missing, NotReady.
    """
    packed = _packed(store, settings, card)
    application = packed.load()
    state = None
    if card.state_sha256 is not None and card.state_format is not None:
        raw = store.get(artefact_key(card.application, card.version, STATE), sha256=card.state_sha256)
        state = decode_state(application.fit, EncodedState(format=card.state_format, content=raw))
    featurizer = Featurizer(
        application,
        code_version=card.code_version,
        state=state,
        state_sha256=card.state_sha256,
        wanted=card.features,
    )
    return LoadedCode(packed=packed, featurizer=featurizer)


def _packed(store: ObjectStore, settings: Settings, card: Card) -> PackedApplication:
    if card.code_sha256 is None:  # published before code was kept: only the deployed code can serve it
        packed = pack_application(card.application, settings)
        if packed.code_version != card.code_version:
            raise BadInput(
                f"the code {card.code_version} of {card.application}/{card.version} was not kept, and "
                f"{packed.code_version} is deployed",
                "train again, or deploy that code",
            )
        return packed
    key, sha256 = code_key(card.application, card.code_version), card.code_sha256
    return unpack_application(
        card.application, card.code_version, sha256, settings, fetch=lambda: store.get(key, sha256=sha256)
    )


def fetch_kept_rows(store: ObjectStore, card: Card) -> KeptRows | None:
    """The version's kept rows; None for a version that was published before there were any.

    Raises: CorruptObject, BadInput, NotReady.
    """
    if card.kept_rows_sha256 is None:
        return None
    key = artefact_key(card.application, card.version, KEPT_ROWS)
    return KeptRows.decode(store.get(key, sha256=card.kept_rows_sha256), f"{card.application}/{card.version}")


def fetch_model(store: ObjectStore, application: Application, card: Card) -> "torch.nn.Module":
    """The version's model in evaluation mode, on the CPU, in fp32. application: the version's own.

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
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        shared = _shared_names(model)
        if absent := [key for key in missing if key not in shared]:
            raise RuntimeError(f"no weights for {', '.join(absent)}")
        if unexpected:
            raise RuntimeError(f"no place for {', '.join(unexpected)}")
    except (SafetensorError, RuntimeError) as exc:
        raise CorruptObject(f"the weights of {name} do not fit its model: {exc}", "train and publish again") from exc
    floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    if not all(torch.isfinite(tensor).all() for tensor in floats):
        raise UnfitModel(f"{name} has weights that are not finite", "promote another version")
    return model.eval().requires_grad_(False)


def memory_of(tensor: "torch.Tensor") -> tuple[object, ...]:
    """Equal for tensors that are the same numbers in the same memory, as tied weights are."""
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _shared_names(model: "torch.nn.Module") -> set[str]:
    """Names of tensors that are another's memory: of tied weights the file holds one."""
    seen: dict[tuple[object, ...], str] = {}
    shared: set[str] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        place = memory_of(tensor)
        if place in seen and tensor.numel():
            shared |= {name, seen[place]}
        seen.setdefault(place, name)
    return shared
