"""The closed loop, told on the real stack: `make story`.

Handwritten digits are served, then they come rotated; the platform notices, waits for labels, trains and promotes by
itself. Then somebody ingests wrong labels, insists, and all of it is taken back. Each step is a command or a record,
which is printed; at the end stand the counts, the promises, and the accuracy of the stream from end to end.

The story has a stack of its own, which begins with no data: what an earlier one learned would spoil it.
"""

import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import urllib3
from numpy.typing import NDArray
from pydantic_core import from_json, to_json
from rich.bar import Bar
from rich.table import Table
from scipy import ndimage
from sqlalchemy import text
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from deeplambda.adapters import hive, mysql
from deeplambda.adapters.kafka import Publisher, consumer, end_offsets
from deeplambda.clock import now
from deeplambda.config import Settings, find_data_dir, load_settings
from deeplambda.errors import DeepLambdaError
from deeplambda.idx import read_idx, write_idx
from deeplambda.records import topics
from examples.demo import APPLICATION, console, dead_letters, deeplambda
from examples.mnist import FILES, mnist_folder

ROTATED_BY = 30
"""Degrees."""
BACK_WITHIN = 0.01
"""Of the accuracy before the digits were rotated."""
NOTICED_WITHIN = 1_000
"""Events after the first rotated one."""
Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything. Events are of images that neither training nor test split has, each once."""

    train: int = 30_000
    test: int = 5_000
    live: int = 1_000
    rotated: int = 1_000
    labelled: int = 1_500
    after: int = 1_000
    wrong: int = 250
    healed: int = 250
    epochs: int = 2

    @property
    def events(self) -> int:
        return self.live + self.rotated + self.labelled + self.after + self.wrong + self.healed


SMALL = Sizes(train=6_000, test=1_000, live=400, rotated=800, labelled=800, after=400, wrong=200, healed=200)
"""For the tests."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A span of the stream. ids: of its events in order, and what they truly show."""

    title: str
    truth: Mapping[str, str]


@dataclass
class Story:
    """What has been told so far. happened: lines for people. held: promises, and whether each was kept."""

    settings: Settings
    run: str = field(default_factory=lambda: f"story-{secrets.token_hex(4)}")
    chapters: list[Chapter] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)
    held: dict[str, bool] = field(default_factory=dict)

    def tell(self, sentence: str) -> None:
        """Print a sentence, and keep it for the end."""
        self.happened.append(sentence)
        console.print(f"[bold green]»[/] {sentence}", highlight=False)

    def promise(self, sentence: str, kept: bool) -> None:
        """Note whether something is as it should be."""
        self.held[sentence] = kept
        console.print(f"[{'green' if kept else 'red'}]{'✓' if kept else '✗'}[/] {sentence}", highlight=False)

    def stream(self, title: str, images_NHW: Images, labels_N: Images, rate: int, *, labelled: bool) -> Chapter:
        """Send each image as an event at `rate` events/s, with its label where it is known at once; wait for all
        predictions."""
        console.rule(f"[bold]{title}")
        first = sum(len(chapter.truth) for chapter in self.chapters)
        truth = {f"{self.run}-{first + n:05}": str(label) for n, label in enumerate(labels_N)}
        chapter = Chapter(title=title, truth=truth)
        self.chapters.append(chapter)
        started_s = time.monotonic()
        with Publisher(self.settings) as publisher:
            for n, (event_id, image_HW) in enumerate(zip(truth, images_NHW, strict=True)):
                event = {"event_id": event_id, "occurred_at": now(), "image": b64encode(image_HW.tobytes()).decode()}
                publisher.send_bytes(topics.events(APPLICATION), event_id, to_json(event))
                time.sleep(max(0.0, started_s + (n + 1) / rate - time.monotonic()))  # the pace of the load
        if labelled:
            self.label(chapter)
        scored = self.until(lambda: len(self.predictions(chapter)), len(truth))
        console.print(f"{len(truth):,} events sent, {scored:,} predicted; accuracy {self.accuracy(chapter):.2%}")
        return chapter

    def label(self, chapter: Chapter) -> None:
        """Send the truth about a chapter's events."""
        with Publisher(self.settings) as publisher:
            for event_id, label in chapter.truth.items():
                publisher.send(topics.labels(APPLICATION), event_id, {"event_id": event_id, "label": label})
        console.print(f"{len(chapter.truth):,} labels sent: {chapter.title}")

    def predictions(self, chapter: Chapter) -> dict[str, tuple[str, int]]:
        """By event, what was predicted and by which version."""
        first, last = min(chapter.truth), max(chapter.truth)
        statement = text(
            "SELECT event_id, prediction, model_version FROM realtime_predictions "
            "WHERE application = :application AND event_id BETWEEN :first AND :last"
        )
        given = {"application": APPLICATION, "first": first, "last": last}
        with mysql.engine(self.settings, "analyst").connect() as connection:
            rows = connection.execute(statement, given)
            return {row.event_id: (row.prediction, row.model_version) for row in rows}

    def accuracy(self, chapter: Chapter) -> float:
        """The share of its events that were predicted right."""
        said = self.predictions(chapter)
        return sum(said.get(each, ("",))[0] == label for each, label in chapter.truth.items()) / len(chapter.truth)

    @staticmethod
    def until(count: Any, wanted: int, patience_s: float = 180) -> int:
        """Ask for a count until it is `wanted` or patience ends; the last one."""

        @retry(
            retry=retry_if_result(lambda found: found < wanted),
            stop=stop_after_delay(patience_s),
            wait=wait_fixed(0.5),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else 0,
        )
        def poll() -> int:
            return int(count())

        return poll()


class Lifecycle:
    """The platform's own facts, as they come: prints those that belong to the story, keeps all. Use it as a context."""

    _SHOWN = (
        *(
            "DriftDetected",
            "GenerationStarted",
            "GenerationStepped",
            "GenerationEnded",
            "QualityMeasured",
            "DataChanged",
        ),
        *("ModelPromoted", "ModelRejected", "ModelRolledBack"),
    )
    _PASSED_OVER = ("type", "application", "at", "weights_sha256", "code_sha256", "measures", "window", "examples")

    def __init__(self, settings: Settings) -> None:
        self._reader, self._records = consumer(settings, topics.LIFECYCLE), list[dict[str, Any]]()
        self._news, self._stop = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._read, name="lifecycle", daemon=True)

    def wait(self, kind: str, patience_s: float = 300, since: int = 0, **wanted: Any) -> dict[str, Any]:
        """The first record of a kind, from the position `since` on, that has these values. Raises: TimeoutError."""

        def found() -> dict[str, Any] | None:
            return next(
                (
                    record
                    for record in self._records[since:]
                    if record["type"] == kind and all(record.get(name) == value for name, value in wanted.items())
                ),
                None,
            )

        with self._news, console.status(f"waiting for {kind}"):
            self._news.wait_for(lambda: found() is not None, timeout=patience_s)
            if (record := found()) is None:
                raise TimeoutError(f"no {kind} within {patience_s:.0f} s: see 'deeplambda status'")
            return record

    @property
    def position(self) -> int:
        """Where the next record will stand."""
        return len(self._records)

    def _read(self) -> None:
        while not self._stop.is_set():
            for records in self._reader.poll(timeout_ms=500).values():
                for each in records:
                    record = from_json(each.value)
                    if record["type"] in self._SHOWN:
                        said = {
                            name: value for name, value in record.items() if name not in self._PASSED_OVER and value
                        }
                        console.print(f"  [cyan]{record['type']}[/] [dim]{said}", highlight=False)
                    with self._news:
                        self._records.append(record)
                        self._news.notify_all()

    def __enter__(self) -> "Lifecycle":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._reader.close()


def rotated(images_NHW: Images) -> Images:
    """Each image by `ROTATED_BY` degrees, on black."""
    return ndimage.rotate(images_NHW, ROTATED_BY, axes=(2, 1), reshape=False, order=1)


def write_files(folder: Path, mnist: Path, sizes: Sizes) -> tuple[Images, Images]:
    """Write the raw objects of the story into `folder`; images and labels that are left for the stream."""
    folder.mkdir(parents=True, exist_ok=True)
    train_images, train_labels, test_images, test_labels = (
        read_idx((mnist / name).read_bytes(), name) for name in FILES
    )
    kept = (
        *(train_images[: sizes.train], train_labels[: sizes.train]),
        *(test_images[: sizes.test], test_labels[: sizes.test]),
    )
    for name, array in zip(FILES, kept, strict=True):
        (folder / name).write_bytes(write_idx(array))
    images, labels = test_images[sizes.test :], test_labels[sizes.test :]
    if len(images) < sizes.events:  # not the whole of MNIST: the training file has more
        images = np.concatenate([images, train_images[sizes.train :]])
        labels = np.concatenate([labels, train_labels[sizes.train :]])
    return images[: sizes.events], labels[: sizes.events]


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
    os.environ |= {
        "DEEPLAMBDA_DATA_DIR": str(place),
        "DEEPLAMBDA_APPLICATIONS": to_json([APPLICATION]).decode(),
        "DEEPLAMBDA_GENERATIONS": "true",
        "DEEPLAMBDA_GENERATION_LABELS": "0",  # so that the drift is what starts one
        "DEEPLAMBDA_GENERATION_DRIFT_LABELS": str((sizes.rotated + sizes.labelled) * 9 // 10),
        "DEEPLAMBDA_GENERATION_EVERY_S": "0",
        "DEEPLAMBDA_GENERATION_PAUSE_S": "0",
    }
    load_settings.cache_clear()
    if place.exists():
        deeplambda("down")
        shutil.rmtree(place)
    try:
        deeplambda("up", "--free-ports")
        load_settings.cache_clear()
        yield load_settings(), mnist
    finally:
        deeplambda("down")


def main(
    small: Annotated[bool, typer.Option(help="the same with a fifth of the digits")] = False,
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
    parts = (sizes.live, sizes.rotated, sizes.labelled, sizes.after, sizes.wrong, sizes.healed)
    ends = np.cumsum(parts)[:-1]
    upright, *turned = np.split(images, ends)
    shown = np.split(labels, ends)
    turned = [rotated(each) for each in turned]

    console.rule("[bold]a first model")
    deeplambda("data", "put", APPLICATION, str(files))
    deeplambda("batch", "run", APPLICATION, "--set", f"epochs={sizes.epochs}")
    first = lifecycle.wait("ModelPromoted")["version"]

    before = story.stream("digits live", upright, shown[0], rate, labelled=True)
    starts = end_offsets(story.settings, topics.events(APPLICATION))
    blind = story.stream(f"rotated by {ROTATED_BY}°", turned[0], shown[1], rate, labelled=False)
    drift = lifecycle.wait("DriftDetected")
    noticed = sum(drift["window"]["to_offsets"].values()) - sum(starts.values())
    story.tell(f"drift of {drift['what']} noticed after {noticed:,} rotated events")
    story.promise(f"drift is noticed within {NOTICED_WITHIN:,} events", noticed <= NOTICED_WITHIN)
    story.promise("before labels come, nothing is trained", not _generations(story))

    learning = story.stream("labels arrive", turned[1], shown[2], rate, labelled=True)
    story.label(blind)
    ended = lifecycle.wait("GenerationEnded", patience_s=600)
    story.tell(f"generation {ended['number']} was begun by {_generations(story)[0]} and {ended['state']}")
    story.promise("a generation trained, was judged and promoted by itself", ended["state"] == "promoted")
    _served(story, ended["version"])
    after = story.stream("promoted by itself", turned[2], shown[3], rate, labelled=False)
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
    deeplambda("model", "promote", APPLICATION, str(bad["version"]), "--force")
    _served(story, bad["version"])
    wrong = story.stream("forced past the gate", turned[3], shown[4], rate, labelled=False)

    console.rule("[bold]all of it is taken back")
    since = lifecycle.position
    deeplambda("data", "rollback", APPLICATION, "--to", str(published["previous"]), "--why", "labels counted from one")
    undone = lifecycle.wait("DataChanged", since=since, kind="rolled_back")
    story.tell(f"data rolled back by {undone['rows']:,} rows; versions that saw them: {undone['versions']}")
    story.promise("the rollback names the version that saw the rows", undone["versions"] == [bad["version"]])
    deeplambda("model", "rollback", APPLICATION)
    back = lifecycle.wait("ModelRolledBack", since=since)
    _served(story, back["version"])
    healed = story.stream("rolled back", turned[4], shown[5], rate, labelled=False)
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


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of a chapter. archived: events in the lake. predicted: that the union of both views has. double: rows of either
    beyond the first of an event."""

    sent: int
    archived: int
    predicted: int
    double: int
    version: str

    @property
    def lost(self) -> int:
        return 2 * self.sent - self.archived - self.predicted


def counted(story: Story) -> list[Counts]:
    """By chapter, what the lake and the union of both views have of its events."""
    sent = sum(len(chapter.truth) for chapter in story.chapters)

    def rows(source: str) -> Counter[str]:
        statement = text(f"SELECT event_id FROM {source} WHERE event_id LIKE '{story.run}-%'")
        with hive.engine(story.settings).connect() as connection:
            return Counter(connection.scalars(statement))

    story.until(lambda: len(rows(f"lake.{APPLICATION}.events")), sent)
    archived, union = rows(f"lake.{APPLICATION}.events"), rows(f"{APPLICATION}.all_predictions")
    counts = []
    for chapter in story.chapters:
        versions = {version for _, version in story.predictions(chapter).values()}
        counts.append(
            Counts(
                sent=len(chapter.truth),
                archived=sum(each in archived for each in chapter.truth),
                predicted=sum(each in union for each in chapter.truth),
                double=sum(found[each] - 1 for found in (archived, union) for each in chapter.truth if each in found),
                version=", ".join(map(str, sorted(versions))),
            )
        )
    refused = dead_letters(story.settings, story.run)
    story.promise(
        "no event is lost, doubled or refused", not (refused + sum(each.lost + each.double for each in counts))
    )
    return counts


_WINDOW = 100
"""Events of a bar."""


def show(story: Story, counts: list[Counts]) -> None:
    """The table, the plot, what happened and what was promised."""
    table = Table(
        "chapter", "sent", "archived", "predicted", "lost", "double", "accuracy", "version", title="the stream"
    )
    for chapter, each in zip(story.chapters, counts, strict=True):
        numbers = (each.sent, each.archived, each.predicted, each.lost, each.double)
        table.add_row(chapter.title, *(f"{n:,}" for n in numbers), f"{story.accuracy(chapter):.2%}", each.version)
    console.print(table)
    plot = Table(title=f"accuracy of each {_WINDOW} events", box=None, show_header=False)
    for chapter in story.chapters:
        said, events = story.predictions(chapter), list(chapter.truth.items())
        for first in range(0, len(events), _WINDOW):
            window = events[first : first + _WINDOW]
            share = sum(said.get(event, ("",))[0] == label for event, label in window) / len(window)
            plot.add_row(chapter.title if first == 0 else "", Bar(1, 0, share, width=60), f"{share:.0%}")
    console.print(plot)
    for sentence in story.happened:
        console.print(f"» {sentence}", highlight=False)
    for sentence, kept in story.held.items():
        console.print(f"[{'green' if kept else 'red'}]{'kept' if kept else 'BROKEN'}[/]  {sentence}", highlight=False)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (DeepLambdaError, TimeoutError) as exc:
        console.print(f"[red]{exc}")
        sys.exit(1)
    except subprocess.CalledProcessError as exc:
        sys.exit(exc.returncode)  # the command has said why
