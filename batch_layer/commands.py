"""The batch layer's commands: `deeplambda data`, `deeplambda batch`, `deeplambda model`."""

import os
import shlex
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import from_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from batch_layer.model_commands import app as model
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import deciding_metric
from deeplambda.config import Settings, load_settings
from deeplambda.errors import BadInput, ConfigurationError
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.state.card import fetch_card

__all__ = ["batch", "data", "model"]

data = typer.Typer(no_args_is_help=True)
batch = typer.Typer(no_args_is_help=True)
console = Console()

ApplicationName = Annotated[str, typer.Argument(help="an application's name, or the path of its folder")]
Hyperparameter = Annotated[
    list[str] | None,
    typer.Option("--set", help="a hyperparameter, as name=value; may be given again", metavar="NAME=VALUE"),
]


def _packed(name: str) -> tuple[Settings, PackedApplication]:
    settings = load_settings()
    return settings, pack_application(name, settings)


def _spark(settings: Settings, what: str) -> Any:
    from deeplambda.adapters.lake import spark_session

    log = settings.data_dir / "logs" / f"batch-{what}.log"
    with console.status(f"starting Spark ({settings.spark_master}); it logs to {log}"), _stderr_of_children(log):
        return spark_session(settings, what)


@contextmanager
def _stderr_of_children(log: Path) -> Iterator[None]:
    """Let processes that start meanwhile, which is Spark's JVM, write their stderr to `log`: ours is for people."""
    log.parent.mkdir(parents=True, exist_ok=True)
    own = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


@data.command("put")
def data_put(
    application: ApplicationName,
    folder: Annotated[Path, typer.Argument(help="the folder that holds the files", exists=True, file_okay=False)],
) -> None:
    """Upload the application's raw files as they are, each with its SHA-256.

    What is on S3 already, byte for byte, is not sent again, so an interrupted run is taken up by running it again.
    """
    from batch_layer.ingest import raw_key

    settings, packed = _packed(application)
    names = [name for source in packed.load().sources for name in source.objects]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BadInput(f"{folder} has no {missing[0]}", f"{packed.name} reads {', '.join(names)}")
    store, sent = ObjectStore(settings), 0
    with _progress() as progress:
        for name in progress.track(names, description="upload"):
            sent += store.put_file(raw_key(packed.name, name), folder / name)
    console.print(f"{sent} uploaded, {len(names) - sent} there already: s3://{store.bucket}/{raw_key(packed.name, '')}")


@data.command("list")
def data_list(application: ApplicationName) -> None:
    """Show the application's raw objects, their sizes and recorded hashes."""
    from batch_layer.ingest import raw_key

    settings, packed = _packed(application)
    store = ObjectStore(settings)
    table = Table("object", "bytes", "SHA-256")
    for key, size_bytes in store.list(raw_key(packed.name, "")):
        table.add_row(key, f"{size_bytes:,}", store.digest(key) or "not recorded")
    console.print(table)


@batch.command("ingest")
def batch_ingest(application: ApplicationName) -> None:
    """Check every row of the raw objects and append the new ones to `lake.<application>.examples`."""
    settings, packed = _packed(application)
    _ingest(_spark(settings, "ingest"), settings, packed)


@batch.command("prepare")
def batch_prepare(
    application: ApplicationName,
    snapshot: Annotated[int | None, typer.Option(help="Iceberg snapshot of the examples; default: the newest")] = None,
) -> None:
    """Turn a snapshot of the examples into shards of features on S3, announced on Kafka one by one."""
    from batch_layer.prepare import data_set

    settings, packed = _packed(application)
    spark = _spark(settings, "prepare")
    _prepare(spark, settings, packed, data_set(spark, packed, snapshot))


@batch.command("train")
def batch_train(application: ApplicationName, set_: Hyperparameter = None) -> None:
    """Train on the newest snapshot's data set and publish the model; goes on where a killed run was."""
    from batch_layer.prepare import data_set

    settings, packed = _packed(application)
    spark = _spark(settings, "train")
    _train(spark, settings, packed, data_set(spark, packed), _hyperparameters(set_))


@batch.command("tune")
def batch_tune(
    application: ApplicationName,
    trials: Annotated[int, typer.Option(help="how many sets of hyperparameters to try", min=1)] = 8,
    set_: Hyperparameter = None,
) -> None:
    """Try hyperparameters from the application's search space, and say which train the best model.

    Trials are compared on training rows that they do not train on. They run on the Ray cluster of
    DEEPLAMBDA_RAY_ADDRESS where that is set, else on all cores of this machine. Nothing is published: the last line is
    the command that trains with the best.
    """
    from batch_layer.prepare import data_set
    from batch_layer.tune import tune

    settings, packed = _packed(application)
    overrides = _hyperparameters(set_)
    spark = _spark(settings, "tune")
    prepared = data_set(spark, packed)
    _prepare(spark, settings, packed, prepared)
    spark.stop()  # its executors' cores and memory are free for trials
    with _progress() as progress:
        bar = progress.add_task(f"trials on {settings.ray_address or 'this machine'}", total=trials)
        found = tune(
            settings,
            packed,
            dataset=prepared.id,
            overrides=overrides,
            trials=trials,
            ended=lambda: progress.advance(bar),
        )
    drawn = list(found[0].drawn)
    table = Table(*drawn, "epochs", f"{deciding_metric(packed.load())} on rows set aside")
    for trial in found:
        table.add_row(
            *(_short(trial.drawn[name]) for name in drawn), str(trial.epochs), trial.failure or f"{trial.metric:.4f}"
        )
    console.print(table)
    chosen = overrides | found[0].drawn
    arguments = [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]
    command = shlex.join(["deeplambda", "batch", "train", application, *arguments])
    console.print(command, soft_wrap=True, highlight=False)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@batch.command("run")
def batch_run(
    application: ApplicationName,
    set_: Hyperparameter = None,
    promote: Annotated[bool, typer.Option(help="make the new version the champion, if it may be")] = True,
) -> None:
    """Ingest, prepare, train, publish and promote, in one go; training starts while shards are still prepared."""
    from batch_layer.gate import promote as promote_version
    from batch_layer.prepare import data_set

    settings, packed = _packed(application)
    hyperparameters = _hyperparameters(set_)
    spark = _spark(settings, "run")
    _ingest(spark, settings, packed)
    prepared = data_set(spark, packed)
    with ThreadPoolExecutor(1) as executor:
        preparing = executor.submit(_prepare, spark, settings, packed, prepared)
        version = _train(spark, settings, packed, prepared, hyperparameters, preparing)
    if promote:
        promote_version(settings, packed, version)
        console.print(f"[green]champion[/]: {packed.name}/{version}")


@batch.command("recompute")
def batch_recompute(application: ApplicationName) -> None:
    """Score the whole archive with the champion and move the horizon: the batch view takes over from the stream."""
    from batch_layer.recompute import recompute

    settings, packed = _packed(application)
    spark = _spark(settings, "recompute")
    with console.status("scoring the archive"):
        published = recompute(spark, settings, packed)
    cut = ", ".join(f"partition {partition} offset {offset}" for partition, offset in sorted(published.offsets.items()))
    console.print(
        f"batch view: {published.rows:,} predictions by {packed.name}/{published.version} "
        f"in {published.duration_s:.1f} s; horizon at {cut}"
    )


def _ingest(spark: Any, settings: Settings, packed: PackedApplication) -> None:
    from batch_layer.ingest import ingest

    with console.status("ingesting: Spark reads the raw objects and checks every row"):
        done = ingest(spark, settings, packed)
    for split, rows in sorted(done.found.items(), reverse=True):
        console.print(f"ingested {split}: {rows:,} rows good, {done.added.get(split, 0):,} of them new")
    console.print(f"quarantined: {done.quarantined:,} rows; {done.duration_s:.1f} s")


def _prepare(spark: Any, settings: Settings, packed: PackedApplication, prepared: Any) -> None:
    from batch_layer.prepare import prepare

    shards = prepare(spark, settings, packed, prepared)
    console.print(
        f"prepared {prepared.id}: {len(shards)} shards, {sum(shard.rows for shard in shards):,} rows, "
        f"{sum(shard.size_bytes for shard in shards) / 1e6:,.0f} MB, snapshot {prepared.snapshot}"
    )


def _train(
    spark: Any,
    settings: Settings,
    packed: PackedApplication,
    prepared: Any,
    hyperparameters: dict[str, Any],
    preparing: "Future[None] | None" = None,
) -> int:
    """Train, publish and record; returns the version."""
    from batch_layer.epoch_bars import EpochBars
    from batch_layer.lake_rows import append_model_rows
    from batch_layer.publish import metric_rows, model_row, publish_run
    from batch_layer.training_run import train

    with EpochBars(console) as bars:
        trained = train(
            settings,
            packed,
            dataset=prepared.id,
            snapshot=prepared.snapshot,
            overrides=hyperparameters,
            bars=bars,
            preparing=preparing,
        )
    with console.status("publishing: weights, ONNX, card"):
        version = publish_run(settings, packed, trained)
        card = fetch_card(ObjectStore(settings), packed.name, version)
        append_model_rows(spark, packed.load(), model_row(card), metric_rows(card, trained.epochs))
    figures = ", ".join(f"{name} {value:.4f}" for name, value in card.metrics.items())
    console.print(f"published {packed.name}/{version}: {figures}; trained in {card.training_s:.1f} s on {card.device}")
    return version


def _hyperparameters(given: list[str] | None) -> dict[str, Any]:
    chosen = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {pair!r} is not NAME=VALUE", "write for example --set epochs=2")
        try:
            chosen[name] = from_json(value)
        except ValueError:
            chosen[name] = value
    return chosen
