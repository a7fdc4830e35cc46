"""The batch layer's commands: `deeplambda data`, `deeplambda batch`, `deeplambda model`."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import from_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from batch_layer.console import PipelineConsole
from batch_layer.model_commands import app as model
from batch_layer.refusals import ACCEPTED_SHARE
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import deciding_metric
from deeplambda.config import Settings, load_settings
from deeplambda.errors import ConfigurationError
from deeplambda.loading import PackedApplication, pack_application

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
    from batch_layer.raw_objects import files_of, raw_key

    settings, packed = _packed(application)
    names = files_of(packed.load(), folder)
    store, sent = ObjectStore(settings), 0
    with _progress() as progress:
        for name in progress.track(names, description="upload"):
            sent += store.put_file(raw_key(packed.name, name), folder / name)
    console.print(f"{sent} uploaded, {len(names) - sent} there already: s3://{store.bucket}/{raw_key(packed.name, '')}")


@data.command("list")
def data_list(application: ApplicationName) -> None:
    """Show the application's raw objects, their sizes and recorded hashes."""
    from batch_layer.raw_objects import raw_key

    settings, packed = _packed(application)
    store = ObjectStore(settings)
    table = Table("object", "bytes", "SHA-256")
    for key, size_bytes in store.list(raw_key(packed.name, "")):
        table.add_row(key, f"{size_bytes:,}", store.digest(key) or "not recorded")
    console.print(table)


@batch.command("ingest")
def batch_ingest(application: ApplicationName) -> None:
    """Check every row of the raw objects and append the new ones to `lake.<application>.examples`."""
    from batch_layer.pipeline import ingest_examples

    settings, packed = _packed(application)
    ingest_examples(_spark(settings, "ingest"), settings, packed, PipelineConsole(console))


@batch.command("prepare")
def batch_prepare(
    application: ApplicationName,
    snapshot: Annotated[int | None, typer.Option(help="Iceberg snapshot of the examples; default: the newest")] = None,
) -> None:
    """Turn a snapshot of the examples into shards of features on S3, announced on Kafka one by one."""
    from batch_layer.pipeline import prepare_shards
    from batch_layer.prepare import data_set

    settings, packed = _packed(application)
    spark = _spark(settings, "prepare")
    prepare_shards(spark, settings, packed, data_set(spark, packed, snapshot), PipelineConsole(console))


@batch.command("train")
def batch_train(application: ApplicationName, set_: Hyperparameter = None) -> None:
    """Train on the newest snapshot's data set and publish the model; goes on where a killed run was."""
    from batch_layer.pipeline import train_and_publish
    from batch_layer.prepare import data_set

    settings, packed = _packed(application)
    overrides = _hyperparameters(set_)
    spark = _spark(settings, "train")
    train_and_publish(spark, settings, packed, data_set(spark, packed), overrides, PipelineConsole(console))


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
    from batch_layer.pipeline import prepare_shards
    from batch_layer.prepare import data_set
    from batch_layer.tune import tune

    settings, packed = _packed(application)
    overrides = _hyperparameters(set_)
    spark = _spark(settings, "tune")
    dataset = data_set(spark, packed)
    prepare_shards(spark, settings, packed, dataset, PipelineConsole(console))
    spark.stop()  # its executors' cores and memory are free for trials
    with _progress() as progress:
        bar = progress.add_task(f"trials on {settings.ray_address or 'this machine'}", total=trials)
        found = tune(
            settings,
            packed,
            dataset=dataset.id,
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
    arguments = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
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
    from batch_layer.pipeline import run_pipeline

    settings, packed = _packed(application)
    overrides = _hyperparameters(set_)
    spark = _spark(settings, "run")
    card = run_pipeline(spark, settings, packed, overrides, PipelineConsole(console), promotes=promote)
    if promote:
        console.print(f"[green]champion[/]: {packed.name}/{card.version}")


@batch.command("recompute")
def batch_recompute(
    application: ApplicationName,
    accept_refused: Annotated[
        float,
        typer.Option(metavar="SHARE", help="of the events that have a prediction, how many may lose it", min=0, max=1),
    ] = ACCEPTED_SHARE,
) -> None:
    """Score the whole archive with the champion and move the horizon: the batch view takes over from the stream.

    Events that the champion's code or model refuses are kept in the application's table `quarantine`.
    """
    from batch_layer.recompute import recompute

    settings, packed = _packed(application)
    spark = _spark(settings, "recompute")
    with console.status("scoring the archive"):
        published = recompute(spark, settings, packed, accepted_share=accept_refused)
    cut = ", ".join(f"partition {partition} offset {offset}" for partition, offset in sorted(published.offsets.items()))
    console.print(
        f"batch view: {published.rows:,} predictions by {packed.name}/{published.version} "
        f"in {published.duration_s:.1f} s; horizon at {cut}"
    )
    if published.refused:
        console.print(
            f"refused: {published.refused:,} events, kept with their reasons in lake.{packed.name}.quarantine"
        )


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
