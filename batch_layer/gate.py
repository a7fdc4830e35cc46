"""Judge: which model version may serve, and the change of champion."""

import math

import numpy as np
from sqlalchemy import Engine

from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.mysql import engine, mysql_errors
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application, deciding_metric
from deeplambda.config import Settings
from deeplambda.errors import BadInput, CorruptObject, UnfitModel
from deeplambda.loading import PackedApplication
from deeplambda.records.lifecycle import ModelPromoted, ModelRolledBack
from deeplambda.state import outbox, registry
from deeplambda.state.card import ONNX, Card, artefact_key, fetch_card, fetch_model

TOLERANCE = 0.005
"""A candidate may be this much worse than the champion in the primary metric: less is noise between seeds."""


def verdict(
    candidate: Card, champion: Card | None, code_version: str, primary_metric: str, tolerance: float = TOLERANCE
) -> str | None:
    """Why `candidate` must not serve; None when it may.

    code_version: of the application as it is deployed. primary_metric: higher is better; tolerance is in its unit.
    """
    if candidate.code_version != code_version:
        return (
            f"it was trained with code {candidate.code_version}, but {code_version} is deployed, whose transform may "
            "give other features: train again"
        )
    for name, value in candidate.metrics.items():
        if not math.isfinite(value):
            return f"its {name} is {value}"
    if primary_metric not in candidate.metrics:
        return f"its card has no {primary_metric}"
    if champion is None or primary_metric not in champion.metrics:
        return None
    found, wanted = candidate.metrics[primary_metric], champion.metrics[primary_metric]
    if found < wanted - tolerance:
        return (
            f"its {primary_metric} {found:.4f} is worse than {wanted:.4f} of the champion, version {champion.version}, "
            f"by more than {tolerance:g}"
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
    _check_outputs(store, packed.load(), card, name)
    return card


def _check_outputs(store: ObjectStore, application: Application, card: Card, name: str) -> None:
    import torch

    model = fetch_model(store, application, card)
    with torch.inference_mode():
        outputs = model(torch.zeros(1, *card.feature_shape)).numpy()
    if outputs.shape[:1] != (1,) or outputs.size != card.output_size:
        raise UnfitModel(
            f"{name} gives outputs of shape {outputs.shape} for one row, its card says {card.output_size}",
            "train and publish again",
        )
    if not np.isfinite(outputs).all():
        raise UnfitModel(f"{name} gives outputs that are not finite", "promote another version")


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
    return verdict(card, champion, packed.code_version, deciding_metric(packed.load()))


def _tell(settings: Settings, platform: Engine) -> None:
    with Publisher(settings) as publisher:
        outbox.relay(platform, publisher)
