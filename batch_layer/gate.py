"""Judge: which model version may serve, and the change of champion.

1. Every artefact of the version is checked, as a service would before it serves it.
2. Candidate and champion are measured now on the same rows, those of the candidate's test split, each with its own code
   and learned state; where the champion cannot take them, what their cards say is compared, and a refusal says so.
3. The candidate may be worse than the champion by the application's margin.
"""

import math
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from sqlalchemy import Engine

from batch_layer.same_rows import on_same_rows
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.mysql import engine, mysql_errors
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application, deciding_metric
from deeplambda.config import Settings
from deeplambda.errors import BadInput, CorruptObject, InvalidEvent, UnfitModel
from deeplambda.features import Features, call
from deeplambda.loading import PackedApplication
from deeplambda.metrics import lower_is_better
from deeplambda.records.answers import answers
from deeplambda.records.lifecycle import ModelPromoted, ModelRolledBack
from deeplambda.state import outbox, registry
from deeplambda.state.card import ONNX, Card, artefact_key, fetch_card
from deeplambda.state.versions import fetch_kept_rows, fetch_model, load_code


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """By what a candidate is compared with the champion. margin: how much worse it may be, in the metric's unit."""

    metric: str
    lower_is_better: bool = False
    margin: float = Application.margin

    @classmethod
    def of(cls, application: Application) -> "Criterion":
        """The application's own."""
        name = deciding_metric(application)
        return cls(metric=name, lower_is_better=lower_is_better(application, name), margin=application.margin)

    def worse(self, found: float, wanted: float) -> bool:
        """Whether a candidate's figure is worse than the champion's by more than the margin."""
        behind = found - wanted if self.lower_is_better else wanted - found
        return behind > self.margin


def verdict(
    candidate: Card,
    champion: Card | None,
    code_version: str,
    criterion: Criterion,
    same_rows: tuple[float, float] | None = None,
) -> str | None:
    """Why `candidate` must not serve; None when it may.

    code_version: of the application as it is deployed. same_rows: the metric of candidate and champion, measured now on
    the same rows; without it, what their cards say is compared, each of the test split of its own data set.
    """
    if candidate.code_version != code_version:
        return (
            f"it was trained with code {candidate.code_version}, but {code_version} is deployed, whose transform may "
            "give other features: train again"
        )
    for name, value in candidate.metrics.items():
        if not math.isfinite(value):
            return f"its {name} is {value}"
    name = criterion.metric
    if name not in candidate.metrics:
        return f"its card has no {name}"
    if champion is None or (same_rows is None and name not in champion.metrics):
        return None
    found, wanted = same_rows or (candidate.metrics[name], champion.metrics[name])
    if criterion.worse(found, wanted):
        on = "both on the same test rows" if same_rows else "each on the test rows of its own data set"
        return (
            f"its {name} {found:.4f} is worse than {wanted:.4f} of the champion, version {champion.version}, by more "
            f"than {criterion.margin:g} ({on})"
        )
    return None


def verify(settings: Settings, packed: PackedApplication, version: int) -> Card:
    """Check a version's artefacts as a service would before it serves them; its registered card.

    Raises: BadInput when there is no such version, CorruptObject (a hash, a layout), UnfitModel (weights or outputs
    that are not finite, outputs of another shape).
    """
    with mysql_errors(), engine(settings, "platform").connect() as connection:
        card = registry.published_card(connection, packed.name, version)
    store, name = ObjectStore(settings), f"{packed.name}/{version}"
    if fetch_card(store, packed.name, version) != card:
        raise CorruptObject(f"the card of {name} on S3 is not the one in the registry", "train and publish again")
    store.get(artefact_key(packed.name, version, ONNX), sha256=card.onnx_sha256)
    _check_on_kept_rows(store, settings, card, name)
    return card


def _check_on_kept_rows(store: ObjectStore, settings: Settings, card: Card, name: str) -> None:
    import torch

    code, kept = load_code(store, settings, card), fetch_kept_rows(store, card)
    model = fetch_model(store, code.application, card)
    if kept is None:
        return

    def infer(features: Features) -> NDArray[Any]:
        with torch.inference_mode():
            outputs = call(model, {key: torch.from_numpy(array) for key, array in features.items()})
        if len(outputs) != len(kept.outputs) or outputs.numel() != len(outputs) * card.output_size:
            raise UnfitModel(
                f"{name} gives outputs of shape {tuple(outputs.shape)} for {len(kept.outputs)} rows, its card says "
                f"{card.output_size} for each",
                "train and publish again",
            )
        return outputs.float().numpy()  # type: ignore[no-any-return]

    kept.check_features(code.featurizer.features, name)
    kept.check_outputs(infer, name)
    try:
        answers(code.application.objective, kept.outputs).all()
    except InvalidEvent as exc:
        raise UnfitModel(f"the outputs of {name} are no predictions: {exc.message}", exc.remedy) from exc


def promote(
    settings: Settings, packed: PackedApplication, version: int, *, force: bool = False
) -> ModelPromoted | None:
    """Make `version` the champion and tell Kafka at once; None when it is already.

    force: overrule the verdict on quality and code, never on artefacts that are broken.
    Raises: BadInput when there is no such version, UnfitModel (told to Kafka as well), NotReady.
    """
    platform = engine(settings, "platform")
    reason = _reason_against(settings, packed, version, force=force)
    if reason is not None:
        registry.reject(platform, packed.name, version, reason)
        _tell(settings, platform)
        raise UnfitModel(
            f"{packed.name}/{version} was not promoted: {reason}",
            f"the champion serves on; see 'deeplambda model list {packed.name}'",
        )
    promoted = registry.promote(platform, packed.name, version)
    _tell(settings, platform)
    return promoted


def roll_back(settings: Settings, application: str) -> ModelRolledBack:
    """Make the version that served before the champion again and tell Kafka at once.

    Needs neither the artefacts nor torch: it has served before, and services check every model that they load.
    Raises: UnfitModel when there is none, NotReady.
    """
    platform = engine(settings, "platform")
    rolled_back = registry.roll_back(platform, application)
    _tell(settings, platform)
    return rolled_back


def _reason_against(settings: Settings, packed: PackedApplication, version: int, *, force: bool) -> str | None:
    with mysql_errors(), engine(settings, "platform").connect() as connection:
        registry.published_card(connection, packed.name, version)  # no such version is not a rejected one
        champion = registry.champion(connection, packed.name)
    try:
        card = verify(settings, packed, version)
    except (BadInput, UnfitModel) as exc:
        return str(exc)
    if force:
        return None
    criterion = Criterion.of(packed.load())
    same_rows = None
    if champion is not None and card.code_version == packed.code_version:
        same_rows = on_same_rows(settings, card, champion, criterion.metric)
    return verdict(card, champion, packed.code_version, criterion, same_rows)


def _tell(settings: Settings, platform: Engine) -> None:
    with Publisher(settings) as publisher:
        outbox.relay(platform, publisher)
