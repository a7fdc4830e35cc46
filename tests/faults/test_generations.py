"""A generation that is killed at any of its steps and taken up ends as an undisturbed one; and one runs at a time.

| step | kill -9 |
|---|---|
| collect | while it reads what the archive holds |
| quality | its figures stored but not committed |
| prepare | a shard stored but not announced |
| train | an epoch stored but not told on Kafka; a card without a row in the registry |
| judge | while the gate looks at the version's artefacts; the champion changed, but the end not noted |
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from rich.console import Console
from sqlalchemy import select, update

from batch_layer.console import PipelineConsole
from batch_layer.generation import run_generation
from batch_layer.triggers import Due
from deeplambda.adapters import mysql
from deeplambda.config import Settings
from deeplambda.errors import Conflict
from deeplambda.state import generation_store, registry
from deeplambda.state.generation_store import Generation
from deeplambda.state.tables import GENERATIONS, PROMOTIONS
from tests.faults.points import Points, kill
from tests.faults.s3_gate import Moment, s3_gate

KILLS = {
    "collect": Moment("^GET .*/labels/metadata/"),
    "quality": Moment(r"^PUT .*/data_quality/data/", stored=True),
    "prepare": Moment(r"^PUT .*/train-\d+\.safetensors", stored=True),
    "train": Moment(r"^PUT .*/checkpoint-00001\.json", stored=True),
    "publish": Moment(r"^PUT .*/models/2/card\.json", stored=True),
    "judge": Moment(r"^GET .*/models/2/model\.onnx"),
}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a generation ended, and what it left, but for names, ids and the clock."""

    state: str
    verdict: str | None
    versions: list[tuple[Any, ...]]
    promotions: list[tuple[Any, ...]]
    rows: list[tuple[Any, ...]]
    quality: list[tuple[Any, ...]]

    @classmethod
    def of(cls, points: Points, generation: Generation) -> "Ended":
        with mysql.engine(points.settings, "platform").connect() as connection:
            cards = registry.cards(connection, points.name)
            changes = select(PROMOTIONS.c.version, PROMOTIONS.c.previous, PROMOTIONS.c.kind)
            promotions = connection.execute(changes.where(PROMOTIONS.c.application == points.name)).all()
        points.refresh()
        return cls(
            state=generation.state,
            verdict=generation.verdict,
            versions=[(card.version, card.weights_sha256, card.metrics, card.trained_rows) for card in cards],
            promotions=[tuple(row) for row in promotions],
            rows=points.rows("models", "version", "weights_sha256"),
            quality=[
                row
                for row in points.rows("data_quality", "ingest", "measure", "field", "rows")
                if (row[0] or "").startswith("generation-")
            ],
        )


def generated(points: Points, cause: generation_store.Cause = "person", s3: str | None = None) -> Generation:
    """A generation in this process, from where one was left to its end. s3: another address of S3."""
    points.refresh()
    settings = points.settings.model_copy(update={"s3_endpoint": s3 or points.settings.s3_endpoint})
    listener = PipelineConsole(Console(quiet=True))
    due = Due(cause=cause, why="a test asks")
    return run_generation(settings, points.packed, due, listener, lambda: points.spark)


def with_labels(points: Points) -> Points:
    """With a champion, and events whose labels no version has seen."""
    for stage in ("ingest", "prepare", "train"):
        points.finish(stage)
    points.label()
    return points


@pytest.fixture
def points(spark: SparkSession, stack: Settings, tmp_path: Path) -> Points:
    return with_labels(Points(spark, stack, tmp_path))


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A generation that nothing ends. refused: what another one says, started meanwhile."""

    name: str
    refused: list[str]
    ended: Ended


@pytest.fixture(scope="module")
def undisturbed(spark: SparkSession, stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    points, refused = with_labels(Points(spark, stack, tmp_path_factory.mktemp("undisturbed"))), list[str]()

    def start_another() -> None:
        with pytest.raises(Conflict) as conflict:
            generated(points)
        refused.append(str(conflict.value))

    moment = Moment(r"^PUT .*/train-\d+\.safetensors", stored=True)
    with s3_gate(stack.s3_endpoint or "", moment, start_another) as gate:
        generation = generated(points, s3=gate)
    return Undisturbed(name=points.name, refused=refused, ended=Ended.of(points, generation))


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(["train"], id="train"),
        # Halved: a generation that so many processes did not finish is given up.
        pytest.param(list(KILLS)[:3], id="the first half", marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
        pytest.param(list(KILLS)[3:], id="the second half", marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)
def test_a_killed_generation_that_is_taken_up_ends_as_an_undisturbed_one(
    steps: list[str], points: Points, undisturbed: Undisturbed
) -> None:
    for step in steps:
        kill(points, "generations", KILLS[step], step)
    taken_up = generated(points)
    assert taken_up.attempts == len(steps) + 1
    assert taken_up.number == 1
    assert Ended.of(points, taken_up) == undisturbed.ended
    assert undisturbed.ended.state == "promoted"

    _forget_end(points)
    assert Ended.of(points, generated(points)) == undisturbed.ended, "killed once the champion had changed"

    nothing_new = generated(points, cause="schedule")
    assert (nothing_new.number, nothing_new.state, nothing_new.version) == (2, "unchanged", None), "an empty week"

    points.label("maybe")
    held = generated(points, cause="labels")
    assert (held.state, held.step, held.version) == ("held", "quality", None), "a flood of wrong labels"
    assert held.verdict is not None
    assert "refused_labels of wrong_label is 1 over 500 rows, at most 0.5 is expected" in held.verdict


def _forget_end(points: Points) -> None:
    """What a kill between promotion and end leaves."""
    of_points = GENERATIONS.c.application == points.name
    with mysql.engine(points.settings, "platform").begin() as connection:
        connection.execute(update(GENERATIONS).where(of_points).values(state="running", ended_at=None, verdict=None))


def test_of_two_generations_started_at_once_one_runs_and_the_other_says_so(undisturbed: Undisturbed) -> None:
    assert undisturbed.ended.state == "promoted"
    assert undisturbed.refused == [
        f"generation 1 of {undisturbed.name} is under way in another process; "
        f"follow it: 'deeplambda batch generations {undisturbed.name} --follow'"
    ]
