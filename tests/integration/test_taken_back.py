"""Rows that a person takes back are learned from no more: not by weights that are handed on, nor by a generation that
had pinned them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json
from pyspark.sql import SparkSession
from rich.console import Console

from batch_layer.commands import data, model
from batch_layer.console import EpochBars, PipelineConsole
from batch_layer.data_set import data_set
from batch_layer.gate import promote, roll_back
from batch_layer.generation import run_generation
from batch_layer.lake_rows import append_verdicts
from batch_layer.pipeline import train_and_publish
from batch_layer.prepare import prepare
from batch_layer.trials import Trial
from batch_layer.triggers import Due
from batch_layer.withdrawals import Choice, withdraw
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import create_topics
from deeplambda.adapters.lake import current_snapshot
from deeplambda.config import Settings
from deeplambda.state import generation_store, registry
from deeplambda.state.card import Card
from deeplambda.state.generation_store import Generation
from tests.integration.blobs import lifecycle
from tests.integration.test_data_quality import SOURCES, points, said
from tests.integration.test_labelled_events import Archive
from tests.integration.test_sources import Bench

SPACE = """
    from deeplambda.application import LogUniform
    search_space = {"learning_rate": LogUniform(0.05, 0.2)}"""
WELL, BADLY = {"epochs": 30, "learning_rate": 0.1}, {"epochs": 1, "learning_rate": 0.001}
QUIET = Console(quiet=True)


@pytest.fixture
def bench(spark: SparkSession, stack: Settings, tmp_path: Path) -> Bench:
    """With labelled events, and champion 1, which has not seen them."""
    bench = Bench(spark, stack, tmp_path)
    bench.write("x: float\n    y: float", SOURCES + SPACE)
    bench.put(a__csv=points("a", 80), test_of_t__csv=points("t", 80))
    bench.ingest()
    trained(bench, WELL)
    promote(bench.settings, bench.packed, 1)
    create_topics(bench.settings.model_copy(update={"applications": (bench.name,)}))
    archive = Archive(bench)
    archive.events({f"event-{n}": n % 40 - 19.5 for n in range(100)})
    archive.labels({f"event-{n}": "yes" if n % 40 > 19 else "no" for n in range(60)})
    return bench


def trained(bench: Bench, overrides: dict[str, Any], init_from: str | None = None, snapshot: int | None = None) -> Card:
    """A version of the rows that count, or of a snapshot and the labelled events."""
    dataset = data_set(bench.spark, bench.packed, snapshot)
    prepare(bench.spark, bench.settings, bench.packed, dataset)
    work = (bench.spark, bench.settings, bench.packed, dataset, overrides, PipelineConsole(QUIET))
    return train_and_publish(*work, init_from=init_from)


def newest(bench: Bench) -> tuple[Generation, Card]:
    """The last generation, and the version that it ended with."""
    with mysql.engine(bench.settings, "platform").connect() as connection:
        generation = generation_store.newest(connection, bench.name)
        assert generation is not None
        assert generation.version is not None
        return generation, registry.published_card(connection, bench.name, generation.version)


class Disturbed(PipelineConsole):
    """A listener by which something happens when training begins, or when the version is published."""

    def __init__(self, at_training: Callable[[], Any] = int, at_publishing: Callable[[], Any] = int) -> None:
        super().__init__(QUIET)
        self._at_training, self._at_publishing = at_training, at_publishing

    @contextmanager
    def _disturbed(self) -> Iterator[EpochBars]:
        self._at_training()
        with super().training() as bars:
            yield bars

    def training(self) -> Any:
        return self._disturbed()

    def published(self, card: Card) -> None:
        self._at_publishing()


@pytest.mark.long
def test_a_rollback_names_the_heirs_of_what_it_takes_back_and_has_them_replaced_by_clean_weights(bench: Bench) -> None:
    before = current_snapshot(bench.spark, f"lake.{bench.name}.examples")
    assert before is not None
    bench.put(b__csv=points("b", 80))
    bench.ingest()
    wrong = current_snapshot(bench.spark, f"lake.{bench.name}.examples")
    assert trained(bench, BADLY).version == 2
    promote(bench.settings, bench.packed, 2, force=True)
    heir = trained(bench, BADLY, init_from="2", snapshot=before)
    assert (heir.version, heir.snapshot) == (3, before), "its own rows are those of before"

    names = (
        f"{bench.name}/2 learned from it, the champion: 'deeplambda model rollback {bench.name}' {bench.name}/3 learned"
    )
    assert names in said(data, "impact", str(bench.home), str(wrong))
    told = said(data, "rollback", str(bench.home), "--to", str(before), "--why", "they were wrong", "--retrain")
    assert f"{bench.name} has the examples of snapshot {before}; 80 rows count no more" in told
    assert names in told
    generation, card = newest(bench)
    assert (generation.state, generation.cause) == ("promoted", "person")
    assert generation.why == "data rolled back: they were wrong"
    assert (card.version, card.dataset, card.init_from) == (4, heir.dataset, f"{bench.name}/1")
    assert generation.verdict == (
        f"the gate let it through; it began from {bench.name}/1, not from champion 2, which learned from what was "
        "taken back"
    )
    decided = from_json(said(model, "show", str(bench.home), "4"))["decided"]
    assert (decided["kind"], decided["who"]) == ("promoted", "generation 1")
    (comparison, *_) = decided["verdict"]["comparisons"]
    assert (comparison["against"], comparison["candidate"] > comparison["other"]) == (2, True)

    assert f"{bench.name}/2 serves again" in said(model, "rollback", str(bench.home))
    assert f"{getuser()}: by hand, no reason given" in said(model, "history", str(bench.home))


@pytest.mark.long
def test_a_generation_tunes_goes_on_after_it_was_broken_off_and_is_held_when_its_rows_are_taken_back(
    bench: Bench,
) -> None:
    engine, why = mysql.engine(bench.settings, "platform"), "a test asks"

    def generated(listener: PipelineConsole) -> Generation:
        settings = bench.settings.model_copy(update={"generation_trials": 2})
        due = Due(cause="person", why=why)
        return run_generation(settings, bench.packed, due, listener, lambda: bench.spark)

    def fail() -> None:
        raise ConnectionError("the network is gone")

    def trials() -> dict[str, Any]:
        return {found.key: found.modified for found in bench.store.list(f"{bench.name}/tuning/")}

    with pytest.raises(ConnectionError):
        generated(Disturbed(at_training=fail))
    before = trials()
    assert len(before) == 2
    drawn = [Trial.model_validate_json(bench.store.get(key)).drawn for key in before]
    assert {"learning_rate": WELL["learning_rate"]} in drawn, "the champion's are tried first"
    choice = Choice(where="event_id = 'event-7'")
    held = generated(
        Disturbed(at_publishing=lambda: withdraw(bench.spark, engine, bench.name, choice, who="ada", why="a slip"))
    )
    assert trials() == before, "no trial is trained again"
    assert (held.number, held.attempts, held.state) == (1, 2, "held")
    assert held.verdict == "labelled events of its data set were withdrawn while it was under way"
    steps = lifecycle(bench.settings, lambda fact: fact["application"] == bench.name and "step" in fact)
    assert [fact["step"] for fact in steps if fact["attempt"] == 2] == [
        *("collect", "quality", "prepare", "tune", "train", "judge")
    ]
    _, card = newest(bench)
    assert card.hyperparameters["epochs"] == WELL["epochs"]
    assert 0.05 <= card.hyperparameters["learning_rate"] <= 0.2
    assert card.init_from is None, "as the trials did"

    told = said(
        data,
        *("withdraw", str(bench.home), "--topic", "labels", "--where", "event_id = 'event-6'"),
        *("--why", "a wrong label", "--retrain"),
    )
    assert "withdrawn: 1 labels" in told
    assert f"{bench.name}/{card.version} learned from it" in told
    generation, replaced = newest(bench)
    assert (generation.number, generation.state, generation.why) == (2, "promoted", "data withdrawn: a wrong label")
    assert replaced.init_from == f"{bench.name}/1"
    assert replaced.rows["train"]["events"] == card.rows["train"]["events"] - 2


@pytest.mark.long
def test_a_generation_that_is_taken_up_after_its_snapshots_are_gone_pins_another_data_set(bench: Bench) -> None:
    engine, due = mysql.engine(bench.settings, "platform"), Due(cause="labels", why="a test asks")

    def generated(listener: PipelineConsole) -> Generation:
        return run_generation(bench.settings, bench.packed, due, listener, lambda: bench.spark)

    def fail() -> None:
        raise ConnectionError("the network is gone")

    with pytest.raises(ConnectionError):
        generated(Disturbed(at_training=fail))
    with engine.connect() as connection:
        left = generation_store.newest(connection, bench.name)
    assert left is not None
    assert left.data is not None
    pinned = left.data["dataset"]["labelled_events"]
    tags = bench.spark.sql(f"SELECT name FROM lake.{bench.name}.labels.refs WHERE type = 'TAG'").collect()
    assert f"data-set-{left.data['dataset']['id']}-{pinned['labels_snapshot']}" in {tag.name for tag in tags}
    events = pinned | {"labels_snapshot": 1}  # as if upkeep had removed it
    gone = left.data | {"dataset": left.data["dataset"] | {"labelled_events": events}}
    generation_store.pin(engine, left, gone, left.label_offsets)
    ended = generated(PipelineConsole(QUIET))
    assert (ended.number, ended.attempts, ended.state) == (left.number, 2, "promoted")
    assert ended.data is not None
    assert ended.data["dataset"]["labelled_events"]["labels_snapshot"] == pinned["labels_snapshot"]


@pytest.mark.long
def test_after_a_person_has_rolled_back_no_generation_promotes_by_itself_until_a_person_does(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generated() -> Generation:
        due = Due(cause="labels", why="a test asks")
        return run_generation(bench.settings, bench.packed, due, PipelineConsole(QUIET), lambda: bench.spark)

    def champion() -> int:
        with mysql.engine(bench.settings, "platform").connect() as connection:
            return registry.champions(connection, bench.name)[0]

    first = generated()
    assert (first.state, first.version, champion()) == ("promoted", 2, 2)
    roll_back(bench.settings, bench.name, who="ada", why="it is wrong about returns")
    archive = Archive(bench, labels=60)
    archive.labels({f"event-{n}": "yes" if n % 40 > 19 else "no" for n in range(60, 80)})
    held = generated()
    assert (held.state, held.version, champion()) == ("held", 3, 1)
    assert held.verdict is not None
    assert "let version 3 through, but ada went back to version 1 at" in held.verdict
    assert f"'deeplambda model promote {bench.name} 3' has it serve" in held.verdict
    promote(bench.settings, bench.packed, 3, who="ada")
    archive.labels({f"event-{n}": "yes" if n % 40 > 19 else "no" for n in range(80, 100)})
    decided = bench.spark.table(f"lake.{bench.name}.verdicts").select("kind", "version").distinct()
    assert {tuple(row) for row in decided.collect()} == {("promoted", 1), ("promoted", 2), ("rolled_back", 1)}

    def full(*_: object) -> None:
        raise ConnectionError("no space is left")

    with monkeypatch.context() as patch:
        patch.setattr("batch_layer.generation.append_verdicts", full)
        last = generated()
    assert (last.state, last.version, champion()) == ("promoted", 4, 4), "though the lake takes no rows"
    engine = mysql.engine(bench.settings, "platform")
    assert append_verdicts(bench.spark, engine, bench.name) == 2, "upkeep brings the two that it lacks"
    assert append_verdicts(bench.spark, engine, bench.name) == 0
