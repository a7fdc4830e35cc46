"""Loading a model version by its card: code, learned state, weights and kept rows, each by its hash from S3."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.learned import EncodedState, decode_state
from deeplambda.loading import PackedApplication, code_version_of_0_1_0, pack_application, unpack_application
from deeplambda.records.featurizer import Featurizer
from deeplambda.state.card import KEPT_ROWS, STATE, WEIGHTS, Card, artefact_key, code_key, model_arguments
from deeplambda.state.kept_rows import KeptRows
from deeplambda.state.weights import load_weights

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
        if card.code_version not in (packed.code_version, code_version_of_0_1_0(card.application, settings)):
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
    weights = store.get(artefact_key(card.application, card.version, WEIGHTS), sha256=card.weights_sha256)
    model = application.build_model(**model_arguments(card.hyperparameters))
    load_weights(model, weights, f"{card.application}/{card.version}")
    return model.eval().requires_grad_(False)
