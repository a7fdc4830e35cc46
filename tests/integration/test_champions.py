"""Only a sound and good version becomes champion, and the one before is back within five seconds."""

import pickle
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import save

from batch_layer.gate import conclude, judge, promote, roll_back, verify
from batch_layer.publish import publish_run
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import BadInput, Conflict, CorruptObject, UnfitModel
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.records import topics
from deeplambda.records.lifecycle import ModelPromoted
from deeplambda.state import registry
from deeplambda.state.card import CARD, KEPT_ROWS, ONNX, WEIGHTS, Card, artefact_key, code_key, fetch_card
from speed_layer.model_service.champions import ChampionWatch
from tests.integration.blobs import blobs, champions, lifecycle, new_data_set, prepared_data_set, train_blobs
from tests.traffic import eventually
from tests.unit.batch_layer.test_gate import card


@pytest.fixture(scope="module")
def good(stack: Settings, application: PackedApplication) -> Card:
    trained = train_blobs(stack, application, prepared_data_set(stack, application.name))
    return fetch_card(ObjectStore(stack), application.name, publish_run(stack, application, trained))


@pytest.fixture
def champion(stack: Settings, application: PackedApplication, good: Card) -> Card:
    """The good version, serving."""
    promote(stack, application, good.version, force=True)
    return good


def published(stack: Settings, like: Card, weights: bytes | None = None, **changed: object) -> Card:
    """Another version, registered as publishing does: `like` with other weights, or other words on its card."""
    store = ObjectStore(stack)

    def store_artefacts(version: int) -> Card:
        raw = weights or store.get(artefact_key(like.application, like.version, WEIGHTS))
        onnx, kept = (store.get(artefact_key(like.application, like.version, name)) for name in (ONNX, KEPT_ROWS))
        card = like.model_copy(
            update={
                "version": version,
                "weights_sha256": store.put(artefact_key(like.application, version, WEIGHTS), raw),
                "onnx_sha256": store.put(artefact_key(like.application, version, ONNX), onnx),
                "kept_rows_sha256": store.put(artefact_key(like.application, version, KEPT_ROWS), kept),
            }
            | changed
        )
        store.put(artefact_key(like.application, version, CARD), card.model_dump_json().encode())
        return card

    platform = mysql.engine(stack, "platform")
    return fetch_card(
        store, like.application, registry.publish(platform, like.application, new_data_set(), store_artefacts)
    )


def serving(stack: Settings, application: str) -> int | None:
    with mysql.engine(stack, "platform").connect() as connection:
        card = registry.champion(connection, application)
    return card.version if card else None


def rejections(stack: Settings, card: Card) -> list[str]:
    told = lifecycle(
        stack,
        lambda fact: (
            (fact["type"], fact["application"], fact.get("version"))
            == ("ModelRejected", card.application, card.version)
        ),
    )
    return [fact["reason"] for fact in told]


def test_a_promotion_is_told_on_both_topics(stack: Settings, application: PackedApplication, champion: Card) -> None:
    better = published(stack, champion)
    fact = promote(stack, application, better.version)
    assert fact is not None
    assert (fact.version, fact.previous) == (better.version, champion.version)
    told = lifecycle(stack, lambda fact: fact["type"] == "ModelPromoted" and fact["application"] == application.name)
    assert told[-1] == fact.model_dump(mode="json")
    assert champions(stack, application.name)[-1]["version"] == better.version


def test_a_service_that_starts_loads_the_newest_champion_and_none_of_those_before(
    stack: Settings, application: PackedApplication, champion: Card
) -> None:
    """More promotions than one poll gives: with the first of these it had loaded what was promoted long ago."""
    newest = ModelPromoted(
        application=application.name, version=champion.version, previous=None, weights_sha256=champion.weights_sha256
    )
    with Publisher(stack) as publisher:
        for version in range(10_000, 11_200):
            publisher.send(topics.CHAMPIONS, application.name, newest.model_copy(update={"version": version}))
        publisher.send(topics.CHAMPIONS, application.name, newest)
    loaded, failed = list[int](), list[str]()
    watch = ChampionWatch(
        stack, application.name, on_swap=lambda _, version: loaded.append(version), on_failure=failed.append
    )
    watch.start()
    try:
        assert eventually(lambda: loaded or failed), watch.error
    finally:
        watch.stop()
    assert (loaded, failed) == ([champion.version], [])


def test_promoting_the_champion_changes_nothing(
    stack: Settings, application: PackedApplication, champion: Card
) -> None:
    assert promote(stack, application, champion.version) is None
    assert serving(stack, application.name) == champion.version


def test_a_worse_version_is_rejected_and_the_champion_serves_on(
    stack: Settings, application: PackedApplication, champion: Card
) -> None:
    worse = published(stack, champion, metrics=champion.metrics | {"accuracy": champion.metrics["accuracy"] - 0.1})
    with pytest.raises(UnfitModel, match=r"accuracy .* is worse than"):
        promote(stack, application, worse.version)
    assert serving(stack, application.name) == champion.version
    assert len(rejections(stack, worse)) == 1
    assert promote(stack, application, worse.version, force=True) is not None


def test_code_that_is_not_deployed_is_rejected(
    stack: Settings,
    application: PackedApplication,
    champion: Card,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    deployed = next(tmp_path_factory.getbasetemp().glob(f"applications*/{application.name}/application.py"))
    home = tmp_path / application.name
    home.mkdir()
    (home / "application.py").write_text(deployed.read_text() + "\n# other code\n")
    other_code = pack_application(str(home), stack)
    zipped, key = other_code.zip_file.read_bytes(), code_key(application.name, other_code.code_version)
    code_sha256 = ObjectStore(stack).put(key, zipped)
    other = published(stack, champion, code_version=other_code.code_version, code_sha256=code_sha256)
    with pytest.raises(UnfitModel, match="train again"):
        promote(stack, application, other.version)
    assert serving(stack, application.name) == champion.version


def test_weights_that_are_not_finite_never_serve(
    stack: Settings, application: PackedApplication, champion: Card
) -> None:
    tensors = {
        name: torch.full_like(t, torch.nan)
        for name, t in application.load().build_model(hidden=16).state_dict().items()
    }
    broken = published(stack, champion, weights=save(tensors))
    with pytest.raises(UnfitModel, match="not finite"):
        promote(stack, application, broken.version, force=True)
    assert serving(stack, application.name) == champion.version
    assert "not finite" in rejections(stack, broken)[0]


def test_weights_of_another_shape_never_serve(stack: Settings, application: PackedApplication, champion: Card) -> None:
    tensors = application.load().build_model(hidden=8).state_dict()
    broken = published(stack, champion, weights=save(tensors))
    with pytest.raises(UnfitModel, match="do not fit"):
        promote(stack, application, broken.version, force=True)
    assert serving(stack, application.name) == champion.version


def test_weights_that_give_other_outputs_on_the_kept_rows_never_serve(
    stack: Settings, application: PackedApplication, champion: Card
) -> None:
    torch.manual_seed(5)
    altered = published(stack, champion, weights=save(application.load().build_model(hidden=16).state_dict()))
    with pytest.raises(UnfitModel, match="other outputs on its kept rows"):
        promote(stack, application, altered.version, force=True)
    assert serving(stack, application.name) == champion.version


def test_a_second_rollback_does_not_bring_back_what_was_rolled_back(stack: Settings) -> None:
    platform, name = mysql.engine(stack, "platform"), f"rolled_{new_data_set()[:8]}"
    versions = [register(stack, name) for _ in range(3)]
    for version in versions:
        registry.promote(platform, name, version)
    assert [registry.roll_back(platform, name).version for _ in range(2)] == [versions[1], versions[0]]
    with pytest.raises(UnfitModel, match="no earlier champion"):
        registry.roll_back(platform, name)
    registry.promote(platform, name, versions[2])
    assert registry.roll_back(platform, name).version == versions[0]


def test_a_rollback_to_any_version_that_has_served_passes_over_those_between(stack: Settings) -> None:
    platform, name = mysql.engine(stack, "platform"), f"rolled_{new_data_set()[:8]}"
    versions = [register(stack, name) for _ in range(5)]
    for version in versions[:4]:
        registry.promote(platform, name, version)
    with pytest.raises(BadInput, match="has never served"):
        registry.roll_back(platform, name, to=versions[4])
    with pytest.raises(UnfitModel, match="is the champion already"):
        registry.roll_back(platform, name, to=versions[3])
    assert registry.roll_back(platform, name, to=versions[1]).previous == versions[3]
    assert registry.roll_back(platform, name).version == versions[0]
    assert registry.roll_back(platform, name, to=versions[2]).version == versions[2], "it has served as well"


def test_a_verdict_is_not_carried_out_once_the_champion_it_was_judged_beside_has_changed(
    stack: Settings, application: PackedApplication, champion: Card
) -> None:
    later, candidate = published(stack, champion), published(stack, champion)
    worse = published(stack, champion, metrics=champion.metrics | {"accuracy": champion.metrics["accuracy"] - 0.1})
    promote(stack, application, later.version)
    verdicts = [judge(stack, application, each.version) for each in (candidate, worse)]
    roll_back(stack, application.name)
    promote(stack, application, later.version)
    for verdict in verdicts:
        with pytest.raises(Conflict, match="another champion since"):
            conclude(stack, application.name, verdict)
    assert serving(stack, application.name) == later.version, "though it serves as it did then, it was rolled back"
    conclude(stack, application.name, judge(stack, application, candidate.version))
    assert serving(stack, application.name) == candidate.version


def test_every_decision_is_kept_with_who_when_and_why(
    stack: Settings, application: PackedApplication, champion: Card
) -> None:
    better = published(stack, champion)
    promoted = promote(stack, application, better.version, who="ada", why="new labels")
    worse = published(stack, champion, metrics=champion.metrics | {"accuracy": champion.metrics["accuracy"] - 0.1})
    with pytest.raises(UnfitModel):
        promote(stack, application, worse.version, who="bob")
    roll_back(stack, application.name, who="eve", why="it is wrong about returns")
    with mysql.engine(stack, "platform").connect() as connection:
        newest = registry.history(connection, application.name, 3)
    assert [(each.kind, each.version, each.champion, each.who, each.why) for each in newest] == [
        ("rolled_back", champion.version, better.version, "eve", "it is wrong about returns"),
        ("rejected", worse.version, better.version, "bob", None),
        ("promoted", better.version, champion.version, "ada", "new labels"),
    ]
    assert "is worse than" in newest[1].reason
    assert promoted is not None
    assert promoted.verdict is not None
    assert newest[2].verdict == promoted.verdict.model_dump(mode="json")
    assert newest[2].verdict["best"]["test"] == better.version


def register(stack: Settings, application: str) -> int:
    """A version without artefacts: a card in the registry."""
    template = card(1, 0.9)
    return registry.publish(
        mysql.engine(stack, "platform"),
        application,
        new_data_set(),
        lambda version: template.model_copy(update={"application": application, "version": version}),
    )


class _Canary:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> object:
        return Path.touch, (self._path,)


def test_a_pickle_or_a_header_bomb_is_never_loaded(
    stack: Settings, application: PackedApplication, champion: Card, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    torch.save(_Canary(canary), tmp_path / "model.pt2")
    header_bomb = (2**62).to_bytes(8, "little") + b"{"
    for weights in (pickle.dumps(_Canary(canary)), (tmp_path / "model.pt2").read_bytes(), header_bomb):
        offered = published(stack, champion, weights=weights)
        with pytest.raises(UnfitModel, match="do not fit its model"):
            promote(stack, application, offered.version, force=True)
    assert not canary.exists()
    assert serving(stack, application.name) == champion.version


def test_artefacts_that_were_changed_after_publication_are_named(
    stack: Settings, application: PackedApplication, champion: Card
) -> None:
    store = ObjectStore(stack)
    for name in (WEIGHTS, ONNX, KEPT_ROWS):
        tampered = published(stack, champion)
        store.put(artefact_key(application.name, tampered.version, name), b"something else")
        with pytest.raises(CorruptObject, match=name):
            verify(stack, application, tampered.version)
    forged = published(stack, champion)
    store.put(
        artefact_key(application.name, forged.version, CARD),
        forged.model_copy(update={"weights_sha256": "0" * 64}).model_dump_json().encode(),
    )
    with pytest.raises(CorruptObject, match="not the one in the registry"):
        verify(stack, application, forged.version)


def test_a_version_that_does_not_exist_is_no_rejection(
    stack: Settings, application: PackedApplication, champion: Card
) -> None:
    with pytest.raises(BadInput, match="no model version 999"):
        promote(stack, application, 999)


def test_rollback_brings_the_version_before_back(
    stack: Settings, application: PackedApplication, champion: Card
) -> None:
    newer = published(stack, champion)
    promote(stack, application, newer.version)
    fact = roll_back(stack, application.name)
    assert (fact.version, fact.previous) == (champion.version, newer.version)
    assert serving(stack, application.name) == champion.version
    assert champions(stack, application.name)[-1]["version"] == champion.version
    told = lifecycle(stack, lambda told: told["type"] == "ModelRolledBack" and told["application"] == application.name)
    assert told[-1] == fact.model_dump(mode="json")


def test_there_is_nothing_to_roll_back_to_before_the_first_promotion(stack: Settings, tmp_path: Path) -> None:
    with pytest.raises(UnfitModel, match="no earlier champion"):
        roll_back(stack, blobs(stack, tmp_path).name)


def test_the_commands_tell_what_serves(
    stack: Settings,
    application: PackedApplication,
    champion: Card,
    deeplambda: Callable[..., "CompletedProcess[str]"],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    newer = published(stack, champion)
    home = str(next(tmp_path_factory.getbasetemp().glob(f"applications*/{application.name}")))
    assert "sound" in deeplambda("model", "verify", home, str(newer.version)).stdout
    assert f"{application.name}/{newer.version}" in deeplambda("model", "promote", home, "--why", "it is new").stdout
    assert "it is new" in deeplambda("model", "history", home).stdout
    assert "serves again" in deeplambda("model", "rollback", home, "--to", str(champion.version)).stdout
    shown = deeplambda("model", "show", home, str(champion.version)).stdout
    assert champion.weights_sha256 in shown
    listed = deeplambda("model", "list", home).stdout.splitlines()
    assert [line.partition("★")[2].split()[0] for line in listed if "★" in line] == [str(champion.version)]
