"""A small application of a test's own, the stages of its batch layer, and all that they leave behind."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from pydantic_core import to_json
from pyspark.sql import SparkSession
from rich.console import Console

from batch_layer import pipeline
from batch_layer.console import PipelineConsole
from batch_layer.data_set import data_set
from batch_layer.gate import promote
from batch_layer.raw_objects import files_of, raw_key
from batch_layer.recompute import recompute
from batch_layer.shard_format import MANIFEST, manifest_key
from batch_layer.upkeep import maintain
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import create_topics
from deeplambda.adapters.lake import TABLES, create_tables, read_snapshot
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.loading import pack_application
from deeplambda.state import registry
from deeplambda.state.horizon_store import read_batch_view
from tests.conftest import ROOT
from tests.faults.s3_gate import Moment, s3_gate

STAGES = ("ingest", "prepare", "train", "recompute", "maintain")
_SOURCE = """
import numpy as np
from deeplambda.application import Application, Event
from deeplambda.objective import Classification, accuracy
from deeplambda.sources import ByHash, Csv


class PointSeen(Event):
    x: float
    y: float


class Points(Application):
    name = "{name}"
    event = PointSeen
    sources = (Csv("points-*.csv", label="above", event_id="number"),)
    splits = ByHash()
    objective = Classification(("no", "yes"))
    metrics = {{"accuracy": accuracy}}
    hyperparameters = {{"epochs": 3, "batch_size": 500, "learning_rate": 0.02, "weight_decay": 0.0}}
    search_space = {{}}

    def transform(self, batch):
        return np.column_stack([batch["x"], batch["y"]]).astype(np.float32)

    def build_model(self):
        from torch import nn

        return nn.Linear(2, 2)
"""
_FILES, _ROWS = 8, 3_000
_EVENTS = 500
"""Archived, and broken ones among them: every hundredth."""
_SMALL_FILES = 25
PATIENCE_S = 600
"""For a stage as a process of its own, on a machine that does much else."""


@dataclass(frozen=True, kw_only=True)
class Left:
    """All that the stages leave behind which does not depend on the application's name, on ids or on the clock."""

    examples: list[tuple[Any, ...]]
    quarantine: list[tuple[Any, ...]]
    shards: list[tuple[Any, ...]]
    versions: list[tuple[Any, ...]]
    models: list[tuple[Any, ...]]
    metrics: list[tuple[Any, ...]]
    predictions: list[tuple[Any, ...]]
    horizon: Mapping[int, int]
    events: list[tuple[Any, ...]]

    def differs(self, other: "Left") -> list[str]:
        """What is not the same; rows would be too many to show."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]


class Points:
    """One application under a name of its own, on the real stack."""

    def __init__(self, spark: SparkSession, settings: Settings, folder: Path) -> None:
        self.spark, self.settings, self.store = spark, settings, ObjectStore(settings)
        self.name = f"points_{uuid4().hex[:8]}"
        self.home, files = folder / self.name, folder / f"{self.name}-files"
        self._labels = 0
        self.home.mkdir()
        files.mkdir()
        (self.home / "application.py").write_text(_SOURCE.format(name=self.name))
        self.packed = pack_application(str(self.home), settings)
        for number in range(_FILES):
            (files / f"points-{number}.csv").write_text(_table(number))
        for name in files_of(self.packed.load(), files).meant:
            self.store.put_file(raw_key(self.name, name), files / name)

    def archive(self, events: range = range(_EVENTS)) -> None:
        """Put events where the archive stream would: in many small files."""
        create_tables(self.spark, self.packed.load())
        there, at = self.spark.table(f"lake.{self.name}.events"), datetime.now(UTC)
        values = [
            {"event_id": f"event-{n}", "kafka_partition": n % 2, "kafka_offset": n // 2, "kafka_timestamp": at}
            | {"value": _event(n), "archived_at": at}
            for n in events
        ]
        rows = [[row[column] for column in there.columns] for row in values]
        many = self.spark.createDataFrame(rows, there.schema).repartition(_SMALL_FILES)
        many.writeTo(f"lake.{self.name}.events").option("distribution-mode", "none").append()

    def label(self, events: range = range(_EVENTS), says: str | None = None) -> None:
        """Put a label where the archive stream would for archived events, and make the topics to ask for more.

        says: each of them, in the place of what is true.
        """
        create_topics(self.settings.model_copy(update={"applications": (self.name,)}))
        there, at = self.spark.table(f"lake.{self.name}.labels"), datetime.now(UTC)
        values = [
            {"event_id": f"event-{event}", "kafka_partition": n % 2, "kafka_offset": n // 2}
            | {"label": says or ("yes" if event % 7 - 3.5 > event % 5 - 2.25 else "no")}
            | {"kafka_timestamp": at, "archived_at": at}
            for n, event in enumerate(events, self._labels)
        ]
        self._labels += len(events)
        rows = [[row[column] for column in there.columns] for row in values]
        self.spark.createDataFrame(rows, there.schema).writeTo(f"lake.{self.name}.labels").append()

    def run(self, stage: str) -> Any:
        """A stage in this process, from its beginning to its end."""
        self.refresh()
        spark, settings, packed = self.spark, self.settings, self.packed
        says = PipelineConsole(Console(file=io.StringIO()))
        match stage:
            case "ingest":
                return pipeline.ingest_examples(spark, settings, packed, says)
            case "prepare":
                return pipeline.prepare_shards(spark, settings, packed, data_set(spark, packed), says)
            case "train":
                return pipeline.train_and_publish(spark, settings, packed, data_set(spark, packed), {}, says)
            case "recompute":
                return recompute(spark, settings, packed)
            case _:
                return maintain(spark, settings, self.name)

    def finish(self, stage: str) -> None:
        """Run a stage, and what comes between it and the next one."""
        self.run(stage)
        if stage == "train":
            promote(self.settings, self.packed, 1)
            self.archive()

    def command(self, stage: str) -> list[str]:
        """A stage as a person runs it."""
        options = ["--start"] if stage == "generations" else []
        return [str(Path(sys.executable).with_name("deeplambda")), "batch", stage, str(self.home), *options]

    def refresh(self) -> None:
        """Have the session look anew at tables that other processes have written to."""
        for table in TABLES:
            if self.spark.catalog.tableExists(f"lake.{self.name}.{table}"):
                self.spark.catalog.refreshTable(f"lake.{self.name}.{table}")

    def rows(self, table: str, *columns: str, snapshot: int | None = None) -> list[tuple[Any, ...]]:
        """What a table of the lake holds, now or as of a snapshot, sorted; every copy of a row."""
        name = f"lake.{self.name}.{table}"
        found = self.spark.table(name) if snapshot is None else read_snapshot(self.spark, name, snapshot)
        return sorted((tuple(row) for row in found.select(*columns).collect()), key=repr)

    def visible(self) -> tuple[Any, ...]:
        """What anybody sees of the stages so far: rows by table, whole data sets, versions, the batch view."""
        self.refresh()
        tables = [table for table in TABLES if table != "predictions"]  # seen as of the horizon's snapshot
        there = [table for table in tables if self.spark.catalog.tableExists(f"lake.{self.name}.{table}")]
        manifests = [found.key for found in self.store.list(f"{self.name}/prepared/") if "manifest" in found.key]
        with mysql.engine(self.settings, "platform").connect() as connection:
            versions = [card.version for card in registry.cards(connection, self.name)]
            view = read_batch_view(connection, self.name)
        counts = {table: rows for table in there if (rows := self.spark.table(f"lake.{self.name}.{table}").count())}
        return counts, manifests, versions, view

    def unknown_files(self) -> set[str]:
        """Data files of the lake that no snapshot knows."""
        self.refresh()
        below, known = f"warehouse/{self.name}.db/", set[str]()
        for table in TABLES:
            rows = self.spark.sql(f"SELECT DISTINCT file_path FROM lake.{self.name}.{table}.all_files").collect()
            known |= {row.file_path.partition(below)[2] for row in rows}
        stored = {found.key.removeprefix(below) for found in self.store.list(below)}
        return {key for key in stored if "/data/" in key} - known

    def age(self, days: int) -> None:
        """Have the local S3 show what is in the lake as stored so long ago."""
        then = (datetime.now(UTC) - timedelta(days=days)).timestamp()
        for path in (self.settings.data_dir / f"s3/data/{self.store.bucket}/warehouse/{self.name}.db").rglob("*"):
            os.utime(path, (then, then))

    def left(self) -> Left:
        """What is there now."""
        self.refresh()
        manifest = self.store.get(manifest_key(self.name, data_set(self.spark, self.packed).id))
        with mysql.engine(self.settings, "platform").connect() as connection:
            cards = registry.cards(connection, self.name)
            horizon = read_batch_view(connection, self.name).horizon
        assert horizon.snapshot is not None
        shown = "event_id", "kafka_partition", "kafka_offset", "model_version", "prediction", "confidence", "scores"
        return Left(
            examples=self.rows("examples", "event_id", "split", "x", "y", "label", "source", "source_sha256"),
            quarantine=self.rows("quarantine", "source_sha256", "reason", "record"),
            shards=[(each.split, each.partition, each.sha256, each.rows) for each in MANIFEST.validate_json(manifest)],
            versions=[(card.version, card.weights_sha256, card.metrics, card.trained_rows) for card in cards],
            models=self.rows("models", "version", "weights_sha256", "parameters", "hyperparameters"),
            metrics=self.rows("model_metrics", "version", "split", "name", "value", "epoch"),
            predictions=self.rows("predictions", *shown, snapshot=horizon.snapshot),
            horizon=horizon.offsets,
            events=self.rows("events", "event_id", "kafka_partition", "kafka_offset", "value"),
        )


def begun(points: Points, stage: str, output: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """A stage as a process of its own."""
    with output.open("wb") as log:
        return subprocess.Popen(points.command(stage), cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log)


def kill(points: Points, stage: str, moment: Moment, name: str) -> None:
    """Run a stage as a process of its own, until a moment of its work: kill -9 to it, its JVM and its workers."""
    victim: subprocess.Popen[bytes]

    log = points.home.parent / f"{stage}.log"
    with s3_gate(points.settings.s3_endpoint or "", moment, lambda: end_all(victim.pid)) as gate:
        victim = begun(points, stage, log, DEEPLAMBDA_S3_ENDPOINT=gate)
        status = victim.wait(PATIENCE_S)
    assert status == -signal.SIGKILL, f"{stage} was not ended {name}:\n{log.read_text()}"


def end_all(process: int) -> None:
    """kill -9 to a process and all that it has started."""
    family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    for each in family:
        each.send_signal(signal.SIGKILL)
    psutil.wait_procs(family[1:], timeout=10)


def _table(number: int) -> str:
    """A CSV; its label says whether x is above y. The first one has a row that is refused."""
    rows = [(n % 7 - 3.5, n % 5 - 2.25, n) for n in range(number * _ROWS, (number + 1) * _ROWS)]
    lines = [f"{n},{x},{y},{'yes' if x > y else 'no'}" for x, y, n in rows]
    return "\n".join(["number,x,y,above", *lines, *(["bad,high,low,no"] if number == 0 else [])]) + "\n"


def _event(number: int) -> bytes:
    event = {"event_id": f"event-{number}", "occurred_at": "2026-01-01T00:00:00Z"}
    return b"{not JSON" if number % 100 == 99 else to_json(event | {"x": number % 7 - 3.5, "y": number % 5 - 2.25})
