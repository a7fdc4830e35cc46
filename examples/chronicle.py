"""What a story on the real stack is made of: chapters of a stream, the platform's own facts as they come, promises; and
what is counted of them at the end."""

import os
import secrets
import shutil
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json, to_json
from rich.bar import Bar
from rich.table import Table
from sqlalchemy import text
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from deeplambda.adapters import hive, mysql
from deeplambda.adapters.kafka import Publisher, consumer
from deeplambda.clock import now
from deeplambda.config import Settings, load_settings
from deeplambda.records import topics
from examples.demo import APPLICATION, console, dead_letters, deeplambda

Images = NDArray[np.uint8]


@contextmanager
def fresh_stack(place: Path, *parts: str, **environment: str) -> Iterator[Settings]:
    """A stack with no data at a place, which goes down at the end; its settings. parts: those that start, and what they
    need; without any, all. environment: further variables."""
    os.environ |= {"DEEPLAMBDA_DATA_DIR": str(place), **environment}
    load_settings.cache_clear()
    if place.exists():
        deeplambda("down")
        shutil.rmtree(place)
    try:
        deeplambda("up", "--free-ports", *parts)
        load_settings.cache_clear()
        yield load_settings()
    finally:
        deeplambda("down")


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
    def until(count: Callable[[], int], wanted: int, patience_s: float = 600) -> int:
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
            "ExperimentStarted",
            "ExperimentEnded",
            "QualityMeasured",
            "DataChanged",
        ),
        *("ModelPromoted", "ModelRejected", "ModelRolledBack"),
    )
    _PASSED_OVER = (
        *("type", "application", "at", "weights_sha256", "code_sha256", "measures", "window", "examples", "fields"),
        *("statistic", "value", "threshold"),
    )

    def __init__(self, settings: Settings) -> None:
        self._reader, self._records = consumer(settings, topics.LIFECYCLE), list[dict[str, Any]]()
        self._news, self._stop = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._read, name="lifecycle", daemon=True)

    def wait(self, kind: str, /, patience_s: float = 600, since: int = 0, **wanted: Any) -> dict[str, Any]:
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
                            name: value
                            for name, value in record.items()
                            if value and name not in self._PASSED_OVER and not isinstance(value, dict)
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
