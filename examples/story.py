"""The closed loop, told on the real stack: `make story`.

Handwritten digits are served, then they come rotated; the platform notices, waits for labels, trains, tries the new
version as a shadow and promotes it by itself. Then somebody ingests wrong labels, insists, and all of it is taken back.
Each step is a command or a record, which is printed; at the end stand the counts, the promises, and the accuracy of the
stream from end to end.

The story has a stack of its own, which begins with no data: what an earlier one learned would spoil it.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import urllib3
from pydantic_core import to_json
from scipy import ndimage
from sqlalchemy import text

from batch_layer.live_verdicts import in_words
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import end_offsets
from deeplambda.config import Settings, find_data_dir
from deeplambda.errors import ConfigurationError, DeepLambdaError
from deeplambda.idx import read_idx, write_idx
from deeplambda.records import topics
from deeplambda.records.verdict import Comparison
from examples.chronicle import Images, Lifecycle, Story, counted, fresh_stack, show
from examples.demo import APPLICATION, console, deeplambda
from examples.mnist import FILES, mnist_folder

ROTATED_BY = 30
"""Degrees."""
BACK_WITHIN = 0.01
"""Of the accuracy before the digits were rotated."""
NOTICED_WITHIN = 1_000
"""Events after the first rotated one."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything. Events are of images that neither training nor test split has, each once."""

    train: int = 12_000
    test: int = 4_000
    live: int = 2_000
    rotated: int = 1_000
    labelled: int = 9_000
    shadowed: int = 500
    after: int = 2_000
    wrong: int = 500
    healed: int = 500
    epochs: int = 4

    @property
    def events(self) -> int:
        return self.live + self.rotated + self.labelled + self.shadowed + self.after + self.wrong + self.healed

    @property
    def all(self) -> int:
        return self.train + self.test + self.events


SMALL = Sizes(
    train=2_000,
    test=1_000,
    live=400,
    rotated=800,
    labelled=2_000,
    shadowed=300,
    after=400,
    wrong=200,
    healed=200,
    epochs=2,
)
"""For the tests."""


def rotated(images_NHW: Images) -> Images:
    """Each image by `ROTATED_BY` degrees, on black."""
    return ndimage.rotate(images_NHW, ROTATED_BY, axes=(2, 1), reshape=False, order=1)


def write_files(folder: Path, mnist: Path, sizes: Sizes) -> tuple[Images, Images]:
    """Write the raw objects of the story into `folder`; images and labels that are left for the stream."""
    folder.mkdir(parents=True, exist_ok=True)
    train_images, train_labels, test_images, test_labels = (
        read_idx((mnist / name).read_bytes(), name) for name in FILES
    )
    # Shuffled together: MNIST's files each begin with one kind of writers and end with another, which would be drift.
    images, labels = np.concatenate([train_images, test_images]), np.concatenate([train_labels, test_labels])
    if len(images) < sizes.all:
        raise ConfigurationError(
            f"the story takes {sizes.all:,} digits, and {mnist} has {len(images):,}",
            "set DEEPLAMBDA_MNIST_DIR to a folder with the whole of MNIST",
        )
    shuffled = np.random.default_rng(0).permutation(len(images))[: sizes.all]
    train, test, live = np.split(shuffled, np.cumsum((sizes.train, sizes.test)))
    for name, array in zip(FILES, (images[train], labels[train], images[test], labels[test]), strict=True):
        (folder / name).write_bytes(write_idx(array))
    return images[live], labels[live]


def count_labels_from_one(folder: Path) -> None:
    """The mistake: in the training labels, 0 becomes 1, and 9 becomes 0."""
    name = list(FILES)[1]
    labels_N = read_idx((folder / name).read_bytes(), name)
    (folder / name).write_bytes(write_idx((labels_N + 1) % 10))


@contextmanager
def own_stack(sizes: Sizes) -> Iterator[tuple[Settings, Path]]:
    """A stack with no data, which goes down at the end; its settings, and a folder for files."""
    place = find_data_dir() / "story"
    mnist, origin = mnist_folder(find_data_dir() / "downloads")
    console.print(f"[bold]digits[/]: {origin}")
    environment = {
        "DEEPLAMBDA_APPLICATIONS": to_json([APPLICATION]).decode(),
        "DEEPLAMBDA_GENERATIONS": "true",
        "DEEPLAMBDA_GENERATION_LABELS": "0",  # so that the drift is what starts one
        "DEEPLAMBDA_GENERATION_DRIFT_LABELS": str((sizes.rotated + sizes.labelled) * 9 // 10),
        "DEEPLAMBDA_GENERATION_EVERY_S": "0",
        "DEEPLAMBDA_GENERATION_PAUSE_S": "0",
        "DEEPLAMBDA_GENERATION_SHADOW_LABELS": str(sizes.shadowed),
        "DEEPLAMBDA_GENERATION_SHADOW_S": "300",
    }
    with fresh_stack(place, **environment) as settings:
        yield settings, mnist


def main(
    small: Annotated[bool, typer.Option(help="the same with a fraction of the digits")] = False,
    rate: Annotated[int, typer.Option(help="events per second")] = 100,
) -> None:
    """Tell the story; exit code 1 when a promise is not kept."""
    started_s, sizes = time.monotonic(), SMALL if small else Sizes()
    with own_stack(sizes) as (settings, mnist), Lifecycle(settings) as lifecycle:
        story = Story(settings)
        files = settings.data_dir / "raw"
        images, labels = write_files(files, mnist, sizes)
        _told(story, lifecycle, sizes, files, images, labels, rate)
        show(story, counted(story))
    console.print(f"told in {(time.monotonic() - started_s) / 60:.1f} minutes")
    if not all(story.held.values()):
        raise typer.Exit(1)


def _told(
    story: Story, lifecycle: Lifecycle, sizes: Sizes, files: Path, images: Images, labels: Images, rate: int
) -> None:
    parts = (sizes.live, sizes.rotated, sizes.labelled, sizes.shadowed, sizes.after, sizes.wrong, sizes.healed)
    ends = np.cumsum(parts)[:-1]
    upright, *turned = np.split(images, ends)
    shown = np.split(labels, ends)
    turned = [rotated(each) for each in turned]

    console.rule("[bold]a first model")
    deeplambda("data", "put", APPLICATION, str(files))
    deeplambda("batch", "run", APPLICATION, "--set", f"epochs={sizes.epochs}")
    first = lifecycle.wait("ModelPromoted")["version"]

    before = story.stream("digits live", upright, shown[0], rate, labelled=True)
    starts, since = end_offsets(story.settings, topics.events(APPLICATION)), lifecycle.position
    blind = story.stream(f"rotated by {ROTATED_BY}°", turned[0], shown[1], rate, labelled=False)
    drift = lifecycle.wait("DriftDetected", since=since)
    noticed = sum(drift["window"]["to_offsets"].values()) - sum(starts.values())
    story.tell(f"drift of {drift['what']} noticed after {noticed:,} rotated events")
    story.promise(f"drift is noticed within {NOTICED_WITHIN:,} events", noticed <= NOTICED_WITHIN)
    story.promise("before labels come, nothing is trained", not _generations(story))

    learning = story.stream("labels arrive", turned[1], shown[2], rate, labelled=True)
    story.label(blind)
    lifecycle.wait("ExperimentStarted", patience_s=1_800)
    story.stream("a shadow beside them", turned[2], shown[3], rate, labelled=True)
    shadow = lifecycle.wait("ExperimentEnded")
    live = shadow["comparison"]
    said = in_words(Comparison.model_validate(live)) if live else shadow["reason"]
    story.tell(f"the shadow, version {shadow['version']}, was {shadow['state']}: {said}")
    story.promise("labels of live events decide for the generation's shadow", shadow["state"] == "promoted")
    ended = lifecycle.wait("GenerationEnded", patience_s=1_800)
    story.tell(f"generation {ended['number']} was begun by {_generations(story)[0]} and {ended['state']}")
    story.promise("a generation trained, was judged and promoted by itself", ended["state"] == "promoted")
    _served(story, ended["version"])
    after = story.stream("promoted by itself", turned[3], shown[4], rate, labelled=False)
    accuracies = [story.accuracy(each) for each in (before, learning, after)]
    story.tell("live accuracy before, rotated, after: " + ", ".join(f"{each:.2%}" for each in accuracies))
    story.promise("live accuracy is back within 1 point", accuracies[2] >= accuracies[0] - BACK_WITHIN)

    console.rule("[bold]labels counted from one are ingested")
    since = lifecycle.position
    count_labels_from_one(files)
    deeplambda("data", "put", APPLICATION, str(files))
    _fails("batch", "ingest", APPLICATION)
    held = lifecycle.wait("QualityMeasured", since=since, subject="ingest")
    story.tell(f"quality stopped it: {'; '.join(held['broken'])}")
    story.promise("quality keeps mislabelled rows from readers", held["branch"] is not None)
    deeplambda("data", "publish", APPLICATION, held["branch"], "--why", "somebody is sure that they are right")
    published = lifecycle.wait("DataChanged", since=since, kind="published")
    deeplambda("batch", "generations", APPLICATION, "--start", "--why", "rows were published by hand")
    bad = lifecycle.wait("GenerationEnded", since=since)
    story.tell(f"forced in, the gate said of version {bad['version']}: {bad['verdict']}")
    story.promise("the gate rejects what learned from them", bad["state"] == "rejected")
    deeplambda("model", "promote", APPLICATION, str(bad["version"]), "--force", "--why", "somebody knows better")
    _served(story, bad["version"])
    wrong = story.stream("forced past the gate", turned[4], shown[5], rate, labelled=False)

    console.rule("[bold]all of it is taken back")
    since = lifecycle.position
    deeplambda("data", "rollback", APPLICATION, "--to", str(published["previous"]), "--why", "labels counted from one")
    undone = lifecycle.wait("DataChanged", since=since, kind="rolled_back")
    story.tell(f"data rolled back by {undone['rows']:,} rows; versions that saw them: {undone['versions']}")
    story.promise("the rollback names the version that saw the rows", undone["versions"] == [bad["version"]])
    deeplambda("model", "rollback", APPLICATION, "--why", "it learned from labels counted from one")
    back = lifecycle.wait("ModelRolledBack", since=since)
    _served(story, back["version"])
    healed = story.stream("rolled back", turned[5], shown[6], rate, labelled=False)
    story.tell(
        f"live accuracy with the wrong labels {story.accuracy(wrong):.2%}, taken back {story.accuracy(healed):.2%}"
    )
    story.promise("the version of before serves again", back["version"] == ended["version"] != first)


def _generations(story: Story) -> list[str]:
    """What began each generation so far, the first one first."""
    statement = text("SELECT cause FROM generations WHERE application = :application ORDER BY number")
    with mysql.engine(story.settings, "analyst").connect() as connection:
        return list(connection.scalars(statement, {"application": APPLICATION}))


def _served(story: Story, version: int) -> None:
    """Wait until the model service answers with a version."""
    url = f"{story.settings.model_url}/v2/models/{APPLICATION}/versions/{version}/ready"

    def is_ready() -> bool:
        return urllib3.request("GET", url, retries=False).status == HTTPStatus.OK

    if not story.until(is_ready, True, patience_s=60):
        raise TimeoutError(f"{APPLICATION}/{version} is the champion, and is not served")


def _fails(*arguments: str) -> None:
    """Run a command that is to be refused."""
    try:
        deeplambda(*arguments)
    except subprocess.CalledProcessError:
        return
    raise AssertionError(f"deeplambda {' '.join(arguments)} was not refused")


if __name__ == "__main__":
    try:
        typer.run(main)
    except (DeepLambdaError, TimeoutError) as exc:
        console.print(f"[red]{exc}")
        sys.exit(1)
    except subprocess.CalledProcessError as exc:
        sys.exit(exc.returncode)  # the command has said why
