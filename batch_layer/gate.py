"""Judge: which model version may serve, and the change of champion.

1. Every artefact of the version is checked, as a service would before it serves it.
2. Candidate and champion are measured now on the same rows, those of the candidate's test split and of its newest
   labelled events, each with its own code and learned state; so is the version that did best so far, where that is
   another. Where the champion cannot take the rows, what their cards say is compared, and a refusal says so; an
   application that asks for proof or for a minimum effect refuses then.
3. The rules of `verdicts` decide. Verdict, who asked and why go to the registry and to Kafka.
"""

import logging
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray
from sqlalchemy import Engine

from batch_layer.criterion import Criterion
from batch_layer.same_rows import on_same_rows
from batch_layer.verdicts import LATENCY, Role, compared, verdict
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.mysql import engine, mysql_errors
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import BadInput, CorruptObject, InvalidEvent, UnfitModel
from deeplambda.features import Features, call
from deeplambda.loading import PackedApplication
from deeplambda.records.answers import answers
from deeplambda.records.lifecycle import ModelPromoted, ModelRolledBack
from deeplambda.records.verdict import Verdict
from deeplambda.splits import RECENT, TEST
from deeplambda.state import outbox, registry
from deeplambda.state.card import ONNX, Card, artefact_key, fetch_card
from deeplambda.state.versions import fetch_kept_rows, fetch_model, load_code

_log = logging.getLogger(__name__)


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
    settings: Settings,
    packed: PackedApplication,
    version: int,
    *,
    force: bool = False,
    who: str | None = None,
    why: str | None = None,
) -> ModelPromoted | None:
    """Make `version` the champion and tell Kafka at once; None when it is already.

    force: overrule the verdict on quality and code, never on artefacts that are broken. who, why: for the registry.
    Raises: BadInput when there is no such version, UnfitModel (told to Kafka as well), Conflict, NotReady.
    """
    return conclude(settings, packed.name, judge(settings, packed, version, force=force), who=who, why=why)


def conclude(
    settings: Settings, application: str, verdict: Verdict, *, who: str | None = None, why: str | None = None
) -> ModelPromoted | None:
    """Do what a verdict says, and tell Kafka at once. Raises: as `promote`; Conflict when another champion serves than
    when the verdict was given, which judging anew mends."""
    platform, version = engine(settings, "platform"), verdict.version
    decision = registry.Decision(who=who, why=why, verdict=verdict)
    if verdict.reasons:
        reason = "; ".join(verdict.reasons)
        registry.reject(platform, application, version, reason, decision)
        _tell(settings, platform)
        raise UnfitModel(
            f"{application}/{version} was not promoted: {reason}",
            f"the champion serves on; see 'deeplambda model history {application}'",
        )
    promoted = registry.promote(platform, application, version, decision)
    _tell(settings, platform)
    return promoted


def judge(settings: Settings, packed: PackedApplication, version: int, *, force: bool = False) -> Verdict:
    """The verdict on `version`, which changes nothing. force: look at its artefacts alone.

    Raises: BadInput when there is no such version, NotReady.
    """
    with mysql_errors(), engine(settings, "platform").connect() as connection:
        registry.published_card(connection, packed.name, version)  # no such version is not a rejected one
        champion = registry.champion(connection, packed.name)
        best, after = registry.best_so_far(connection, packed.name), registry.last_change(connection, packed.name)
        rivals = {number: registry.published_card(connection, packed.name, number) for number in set(best.values())}
    try:
        card = verify(settings, packed, version)
    except (BadInput, UnfitModel) as exc:
        return Verdict(version=version, reasons=[str(exc)])
    if force:
        return Verdict(version=version, best=dict.fromkeys((TEST, RECENT), version))
    criterion, comparisons, figures = Criterion.of(packed.load()), [], {}
    if card.code_version == packed.code_version:
        figures = {LATENCY: _latency_ms(settings, card)}
        for split, other, role in _others(card, champion, rivals, best):
            if (same := on_same_rows(settings, card, other, split)) is None:
                continue
            try:
                comparisons += compared(same, split, other.version, role, criterion)
            except BadInput as exc:  # such as recent events of one class alone
                _log.warning("%s/%d and %d: %s rows say nothing: %s", packed.name, version, other.version, split, exc)
    judged = verdict(card, champion, packed.code_version, criterion, comparisons, figures, best)
    return judged.model_copy(update={"after": after})


def _others(
    card: Card, champion: Card | None, rivals: Mapping[int, Card], best: Mapping[str, int]
) -> Iterator[tuple[str, Card, Role]]:
    """On which split the candidate is compared, with whom and why."""
    if champion is not None and champion.version != card.version:
        for split in (TEST, RECENT):
            yield split, champion, "champion"
            rival = rivals.get(best.get(split, champion.version), champion)
            if rival.version not in (champion.version, card.version):
                yield split, rival, "best"


def _latency_ms(settings: Settings, card: Card) -> float:
    """The median over the version's kept rows of what transform and model take for one of them; 0 without any."""
    import torch

    store = ObjectStore(settings)
    code, kept = load_code(store, settings, card), fetch_kept_rows(store, card)
    model = fetch_model(store, code.application, card)
    if kept is None:
        return 0.0
    took_ms = []
    with torch.inference_mode():
        for row in range(len(kept.payload)):
            started = time.perf_counter()
            features = code.featurizer.features(kept.payload.slice(row, 1))
            call(model, {key: torch.from_numpy(array) for key, array in features.items()})
            took_ms.append((time.perf_counter() - started) * 1e3)
    return statistics.median(took_ms)


def roll_back(
    settings: Settings, application: str, to: int | None = None, *, who: str | None = None, why: str | None = None
) -> ModelRolledBack:
    """Make an earlier champion serve again and tell Kafka at once: `to`, or else the version before the champion.

    Needs neither the artefacts nor torch: it has served before, and services check every model that they load.
    Raises: UnfitModel when there is none, BadInput when `to` has never served, NotReady.
    """
    platform = engine(settings, "platform")
    rolled_back = registry.roll_back(platform, application, to, registry.Decision(who=who, why=why))
    _tell(settings, platform)
    return rolled_back


def _tell(settings: Settings, platform: Engine) -> None:
    with Publisher(settings) as publisher:
        outbox.relay(platform, publisher)
