"""The batch layer's loop: raw objects → examples → shards → a trained run → a published version → the champion.

Each step is also a function of its own (`ingest`, `prepare`, `train`, `publish_run`, `promote`); whoever runs the loop
passes a listener that is told how far it has come. Running the loop again redoes nothing that is finished.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol
from uuid import uuid4

from pyspark.sql import SparkSession

from batch_layer.checkpoint import newest_epoch, run_id
from batch_layer.data_set import DataSet, data_set, fetch_data_set
from batch_layer.gate import promote
from batch_layer.ingest import Ingested, ingest
from batch_layer.lake_rows import append_model_rows, append_verdicts
from batch_layer.prepare import prepare
from batch_layer.publish import metric_rows, model_row, publish_run
from batch_layer.trainer import all_hyperparameters
from batch_layer.training_run import TrainingListener, train
from batch_layer.training_workers import train_on_workers
from deeplambda.adapters import mysql
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.loading import PackedApplication
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.state import registry
from deeplambda.state.card import Card, fetch_card
from deeplambda.state.data_changes import operator


class PipelineListener(Protocol):
    """Told of each step, in the order of these methods; `prepared` comes while training is under way."""

    def working(self, description: str) -> AbstractContextManager[object]:
        """Entered around work that reports no progress of its own."""

    def ingested(self, ingested: Ingested) -> None:
        """Every raw row has been checked, and the new ones are in the lake."""

    def prepared(self, dataset: DataSet, announcements: Sequence[PartitionPrepared]) -> None:
        """Every shard of the data set is on S3."""

    def training(self) -> AbstractContextManager[TrainingListener]:
        """Entered around training; what it yields is told of epochs."""

    def published(self, card: Card) -> None:
        """The version is on S3, in the registry and in Hive."""


def run_pipeline(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    overrides: Mapping[str, Any],
    listener: PipelineListener,
    *,
    promotes: bool = True,
    workers: int = 1,
    init_from: str | None = None,
) -> Card:
    """The whole loop; the card of the version that it published. Training begins while shards are still prepared; when
    it fails, preparation ends, and the next run goes on with it.

    overrides: of the application's hyperparameters. promotes: whether the version is offered to the gate. workers: that
    train; several begin when all shards are prepared. init_from: the version whose weights training begins from, as
    `registry.version_named` takes it.
    Raises: what the steps raise; UnfitModel when the gate refuses the version.
    """
    ingest_examples(spark, settings, packed, listener)
    dataset, jobs = data_set(spark, packed), f"prepare-{uuid4().hex}"

    def prepare_beside() -> None:
        spark.sparkContext.setJobGroup(jobs, "preparation")
        prepare_shards(spark, settings, packed, dataset, listener)

    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as executor:
        preparing = executor.submit(prepare_beside)
        try:
            card = train_and_publish(
                spark, settings, packed, dataset, overrides, listener, preparing, workers, init_from
            )
        except BaseException:  # that is said now, not once a preparation of hours has ended; what it made stays
            spark.sparkContext._jsc.sc().cancelJobGroupAndFutureJobs(jobs)
            raise
    if promotes:
        try:
            promote(settings, packed, card.version, who=operator(), why="trained by the pipeline")
        finally:
            append_verdicts(spark, mysql.engine(settings, "platform"), packed.name)
    return card


def ingest_examples(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    listener: PipelineListener,
    *,
    whole: bool = False,
) -> None:
    """Check every raw row and append the new ones to `lake.<application>.examples`; whole: as `ingest` takes it."""
    with listener.working("ingesting: Spark reads the raw objects and checks every row"):
        ingested = ingest(spark, settings, packed, whole=whole)
    listener.ingested(ingested)


def prepare_shards(
    spark: SparkSession, settings: Settings, packed: PackedApplication, dataset: DataSet, listener: PipelineListener
) -> None:
    """Make the data set's shards, as far as they are missing."""
    announcements = prepare(spark, settings, packed, dataset)
    listener.prepared(fetch_data_set(ObjectStore(settings), packed.name, dataset.id) or dataset, announcements)


def train_and_publish(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    dataset: DataSet,
    overrides: Mapping[str, Any],
    listener: PipelineListener,
    preparing: "Future[None] | None" = None,
    workers: int = 1,
    init_from: str | None = None,
) -> Card:
    """Train on the data set, publish the run as a version, and record it in Hive; its card.

    preparing: the job that prepares the data set beside this one; when it fails, so does training, at once. init_from:
    as in `run_pipeline`.
    """
    parent = None
    if init_from is not None:
        with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
            parent = registry.version_named(connection, packed.name, init_from)
    if (card := _published_before(settings, packed, dataset, overrides, parent)) is not None:
        if preparing is not None:
            preparing.result()
        append_model_rows(spark, packed.load(), model_row(card), metric_rows(card, []))
        listener.published(card)
        return card
    if workers > 1 and preparing is not None:
        preparing.result()
    given: Any = {"dataset": dataset.id, "snapshot": dataset.snapshot, "overrides": overrides, "parent": parent}
    with listener.training() as epochs:
        if workers > 1:
            trained = train_on_workers(spark, settings, packed, workers=workers, listener=epochs, **given)
        else:
            trained = train(settings, packed, listener=epochs, preparing=preparing, **given)
    if preparing is not None:
        preparing.result()  # the card tells of the whole data set
    with listener.working("publishing: weights, ONNX, card"):
        version = publish_run(settings, packed, trained)
        card = fetch_card(ObjectStore(settings), packed.name, version)
        append_model_rows(spark, packed.load(), model_row(card), metric_rows(card, trained.epochs))
    listener.published(card)
    return card


def _published_before(
    settings: Settings,
    packed: PackedApplication,
    dataset: DataSet,
    overrides: Mapping[str, Any],
    parent: Card | None,
) -> Card | None:
    """The version that this training made long ago, so that upkeep has removed its checkpoints; None: train."""
    store = ObjectStore(settings)
    run = run_id(dataset.id, packed.code_version, all_hyperparameters(packed.load(), overrides), parent)
    version = registry.version_of_run(mysql.engine(settings, "platform"), packed.name, run)
    if version is None or newest_epoch(store, packed.name, run):
        return None
    return fetch_card(store, packed.name, version)
