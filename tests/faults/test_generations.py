"""A generation that is killed at any of its steps and taken up ends as an undisturbed one; and one runs at a time.

| step | kill -9 |
|---|---|
| collect | while it reads what the archive holds |
| quality | its figures stored but not committed |
| prepare | a shard stored but not announced |
| train | an epoch stored but not told on Kafka; a card without a row in the registry |
| judge | while the gate looks at the version's artefacts; the champion changed, but the end not noted |
| shadow | while the version answers beside the champion |
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from rich.console import Console
from sqlalchemy import select, update

from batch_layer.console import PipelineConsole
from batch_layer.experiments import follow
from batch_layer.generation import run_generation
from batch_layer.triggers import Due
from deeplambda.adapters import mysql
from deeplambda.config import Settings
from deeplambda.errors import Conflict
from deeplambda.service.loops import LoopStatus
from deeplambda.state import experiment_store, generation_store, registry
from deeplambda.state.experiment_store import Experiment
from deeplambda.state.generation_store import Generation
from deeplambda.state.tables import GENERATIONS, PROMOTIONS
from tests.faults.points import PATIENCE_S, Points, begun, end_all, kill
from tests.faults.s3_gate import Moment
from tests.traffic import eventually

pytestmark = pytest.mark.long
KILLS = {
    "collect": Moment("^GET .*/labels/metadata/"),
    "quality": Moment(r"^PUT .*/data_quality/data/", stored=True),
    "prepare": Moment(r"^PUT .*/train-\d+\.safetensors", stored=True),
    "train": Moment(r"^PUT .*/checkpoint-00001\.json", stored=True),
    "publish": Moment(r"^PUT .*/models/2/card\.json", stored=True),
    "judge": Moment(r"^GET .*/models/2/model\.onnx"),
    "shadow": None,  # asks nothing of S3
}
FLOOD = range(1_000, 21_000)
"""About as many events as there are examples to learn from."""


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


def generated(points: Points, cause: generation_store.Cause = "person") -> Generation:
    """A generation in this process, from where one was left to its end."""
    points.refresh()
    listener = PipelineConsole(Console(quiet=True))
    due = Due(cause=cause, why="a test asks")
    return run_generation(points.settings, points.packed, due, listener, lambda: points.spark)


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
    """A generation that nothing ends. told: what the process of another one says, which was started with it."""

    points: Points
    told: str
    ended: Ended


@pytest.fixture(scope="module")
def undisturbed(spark: SparkSession, stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    points = with_labels(Points(spark, stack, tmp_path_factory.mktemp("undisturbed")))
    logs = [points.home.parent / f"{each}.log" for each in ("one", "other")]
    processes = [begun(points, "generations", log) for log in logs]
    by_status = {process.wait(PATIENCE_S): log.read_text() for process, log in zip(processes, logs, strict=True)}
    assert by_status.keys() == {0, 1}, by_status
    with mysql.engine(stack, "platform").connect() as connection:
        (generation,) = generation_store.listed(connection, points.name)
    return Undisturbed(points=points, told=by_status[1], ended=Ended.of(points, generation))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "steps",
    [list(KILLS)[:3], list(KILLS)[3:]],  # halved: a generation that so many processes did not finish is given up
    ids=["the first half", "the second half"],
)
def test_a_killed_generation_that_is_taken_up_ends_as_an_undisturbed_one(
    steps: list[str], points: Points, undisturbed: Undisturbed
) -> None:
    for step in steps:
        if (moment := KILLS[step]) is not None:
            kill(points, "generations", moment, step)
        else:
            kill_in_shadow(points)
    with followed(points):
        taken_up = generated(points)
    assert taken_up.attempts == len(steps) + 1
    assert taken_up.number == 1
    assert Ended.of(points, taken_up) == undisturbed.ended
    assert undisturbed.ended.state == "promoted"
    assert [each.state for each in shadows(points)] == ["undecided"] * steps.count("shadow"), "the killed one's own"

    _forget_end(points)
    assert Ended.of(points, generated(points)) == undisturbed.ended, "killed once the champion had changed"


def shadows(points: Points) -> list[Experiment]:
    """Those that have begun."""
    with mysql.engine(points.settings, "platform").connect() as connection:
        return experiment_store.listed(connection, points.name)


def kill_in_shadow(points: Points) -> None:
    """Kill -9 a generation while its version is a shadow, whose time is soon up for want of labels."""
    log = points.home.parent / "shadow.log"
    asked = {"generation_shadow_labels": 1, "generation_shadow_s": 1}
    points.settings = points.settings.model_copy(update=asked)
    environment = {f"DEEPLAMBDA_{name.upper()}": str(value) for name, value in asked.items()}
    victim = begun(points, "generations", log, **environment)
    assert eventually(lambda: shadows(points) or victim.poll() is not None, PATIENCE_S)
    assert victim.poll() is None, log.read_text()
    end_all(victim.pid)
    victim.wait()


@contextmanager
def followed(points: Points) -> Iterator[None]:
    """With what follows the application's experiments, as the archive does those of the stack's applications."""
    stop = threading.Event()
    settings = points.settings.model_copy(update={"applications": (points.name,)})
    following = threading.Thread(target=follow, args=(settings, LoopStatus(), stop))
    following.start()
    try:
        yield
    finally:
        stop.set()
        following.join()


def _forget_end(points: Points) -> None:
    """What a kill between promotion and end leaves."""
    of_points = GENERATIONS.c.application == points.name
    with mysql.engine(points.settings, "platform").begin() as connection:
        connection.execute(update(GENERATIONS).where(of_points).values(state="running", ended_at=None, verdict=None))


def test_of_two_generations_started_at_once_one_runs_and_the_other_says_so(undisturbed: Undisturbed) -> None:
    assert undisturbed.ended.state == "promoted"
    name = undisturbed.points.name
    which = re.search(r"(.*) is under way in another process\n(.*)", undisturbed.told)
    assert which is not None, undisturbed.told
    assert which[1] in (f"generation 1 of {name}", f"a generation of {name}"), "the other one has begun, or is to begin"
    assert which[2] == f"follow it: 'deeplambda batch generations {name} --follow'"


def test_a_generation_that_another_process_has_still_to_begin_is_not_taken_for_the_last_one(
    undisturbed: Undisturbed,
) -> None:
    points = undisturbed.points
    platform = mysql.engine(points.settings, "platform")
    with generation_store.generation_lock(platform, points.name), pytest.raises(Conflict) as conflict:
        generated(points)
    assert conflict.value.message == f"a generation of {points.name} is under way in another process"


def test_labels_that_teach_nothing_good_change_no_champion_and_are_named(undisturbed: Undisturbed) -> None:
    points = undisturbed.points
    nothing_new = generated(points, cause="schedule")
    assert (nothing_new.number, nothing_new.state, nothing_new.version) == (2, "unchanged", None), "an empty week"

    points.label(says="maybe")
    held = generated(points, cause="labels")
    assert (held.state, held.step, held.version) == ("held", "quality", None), "a flood of labels that no class has"
    assert held.verdict is not None
    assert "refused_labels of wrong_label is 1 over 500 rows, at most 0.5 is expected" in held.verdict

    points.archive(FLOOD)
    points.label(FLOOD, says="no")
    rejected = generated(points, cause="labels")
    assert (rejected.state, rejected.step, rejected.version) == ("rejected", "judge", 3), "a flood of one class"
    assert rejected.verdict is not None
    assert re.search(r"its accuracy 0\.\d+ is worse than .* of the champion, version 2, by more", rejected.verdict)
    assert Ended.of(points, rejected).promotions == undisturbed.ended.promotions
