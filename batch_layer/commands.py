"""The batch layer's commands: `deeplambda data`, `deeplambda batch`, `deeplambda model`."""

import logging
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import from_json
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from batch_layer.console import PipelineConsole
from batch_layer.model_commands import app as model
from batch_layer.refusals import ACCEPTED_SHARE
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import deciding_metric
from deeplambda.config import Settings, load_settings
from deeplambda.errors import BadInput, ConfigurationError, DeepLambdaError
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.service.full_disk import full_disk
from deeplambda.service.loops import in_one_line

__all__ = ["batch", "data", "model"]

data = typer.Typer(no_args_is_help=True)
batch = typer.Typer(no_args_is_help=True)
console = Console()
_log = logging.getLogger(__name__)

ApplicationName = Annotated[str, typer.Argument(help="an application's name, or the path of its folder")]
ApplicationNames = Annotated[
    list[str], typer.Argument(metavar="APPLICATION...", help="applications, by name or the path of the folder")
]
Hyperparameter = Annotated[
    list[str] | None,
    typer.Option("--set", help="a hyperparameter, as name=value; may be given again", metavar="NAME=VALUE"),
]
Workers = Annotated[
    int,
    typer.Option(
        help="processes that train one model together: on this machine, or as tasks of Spark's executors", min=1
    ),
]


def _packed(name: str) -> tuple[Settings, PackedApplication]:
    settings, (packed,) = _all_packed([name])
    return settings, packed


def _all_packed(names: Iterable[str]) -> tuple[Settings, list[PackedApplication]]:
    settings = load_settings()
    return settings, [pack_application(name, settings) for name in names]


def _one_after_the_other(applications: Iterable[PackedApplication], work: Callable[[PackedApplication], None]) -> None:
    """`work` on each; what fails for one stops no other. Raises: ExceptionGroup of what failed."""
    failures: list[DeepLambdaError] = []
    for packed in applications:
        try:
            work(packed)
        except Exception as exc:  # of a user's code, or Spark's
            if isinstance(known := full_disk(exc, load_settings()) or exc, DeepLambdaError):
                failures.append(known)
                continue
            _log.exception("%s failed", packed.name)
            failures.append(BadInput(f"{packed.name} failed: {in_one_line(exc)}", "see the traceback above"))
    if failures:
        raise ExceptionGroup("some applications failed", failures)


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


def _progress(done: ProgressColumn) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), done, TimeElapsedColumn(), console=console)


@data.command("put")
def data_put(
    application: ApplicationName,
    folder: Annotated[Path, typer.Argument(help="the folder that holds the files", exists=True, file_okay=False)],
) -> None:
    """Upload the application's raw files as they are, each with its SHA-256.

    What is on S3 already, byte for byte, is not sent again, nor are the parts of a large file that S3 has: an
    interrupted run is taken up by running it again.
    """
    from batch_layer.raw_objects import files_of, raw_key

    settings, packed = _packed(application)
    names = files_of(packed.load(), folder)
    store, sent = ObjectStore(settings), 0
    with _progress(DownloadColumn()) as progress:
        bar = progress.add_task("upload", total=sum((folder / name).stat().st_size for name in names))
        for name in names:
            sent += store.put_file(raw_key(packed.name, name), folder / name, partial(progress.advance, bar))
    console.print(f"{sent} uploaded, {len(names) - sent} there already: s3://{store.bucket}/{raw_key(packed.name, '')}")


@data.command("list")
def data_list(application: ApplicationName) -> None:
    """Show the application's raw objects, their sizes and recorded hashes."""
    from batch_layer.raw_objects import raw_key

    settings, packed = _packed(application)
    store = ObjectStore(settings)
    table = Table("object", "bytes", "SHA-256")
    for found in store.list(raw_key(packed.name, "")):
        table.add_row(found.key, f"{found.bytes:,}", store.digest(found.key) or "not recorded")
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
def batch_train(application: ApplicationName, set_: Hyperparameter = None, workers: Workers = 1) -> None:
    """Train on the newest snapshot's data set and publish the model; goes on where a killed run was."""
    from batch_layer.pipeline import train_and_publish
    from batch_layer.prepare import data_set

    settings, packed = _packed(application)
    overrides = _hyperparameters(set_, packed)
    spark = _spark(settings, "train")
    dataset = data_set(spark, packed)
    train_and_publish(spark, settings, packed, dataset, overrides, PipelineConsole(console), workers=workers)


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
    overrides = _hyperparameters(set_, packed)
    spark = _spark(settings, "tune")
    dataset = data_set(spark, packed)
    prepare_shards(spark, settings, packed, dataset, PipelineConsole(console))
    spark.stop()  # its executors' cores and memory are free for trials
    with _progress(MofNCompleteColumn()) as progress:
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
    applications: ApplicationNames,
    set_: Hyperparameter = None,
    promote: Annotated[bool, typer.Option(help="make the new version the champion, if it may be")] = True,
    workers: Workers = 1,
) -> None:
    """Ingest, prepare, train, publish and promote, in one go; training starts while shards are still prepared."""
    from batch_layer.pipeline import run_pipeline

    settings, packed_ones = _all_packed(applications)
    overrides = _hyperparameters(set_, *packed_ones)
    spark = _spark(settings, "run")

    def run(packed: PackedApplication) -> None:
        card = run_pipeline(
            spark, settings, packed, overrides, PipelineConsole(console), promotes=promote, workers=workers
        )
        if promote:
            console.print(f"[green]champion[/]: {packed.name}/{card.version}")

    _one_after_the_other(packed_ones, run)


@batch.command("recompute")
def batch_recompute(
    applications: ApplicationNames,
    accept_refused: Annotated[
        float,
        typer.Option(metavar="SHARE", help="of the events that have a prediction, how many may lose it", min=0, max=1),
    ] = ACCEPTED_SHARE,
    whole: Annotated[
        bool, typer.Option("--whole", help="score all events, not only those since the last time")
    ] = False,
) -> None:
    """Score the archive with the champion and move the horizon: the batch view takes over from the stream.

    While the champion is the same, only the events that came since the last time are scored and added.
    Events that the champion's code or model refuses are kept in the application's table `quarantine`.
    """
    from batch_layer.recompute import recompute

    settings, packed_ones = _all_packed(applications)
    spark = _spark(settings, "recompute")

    def score(packed: PackedApplication) -> None:
        with console.status(f"scoring the archive of {packed.name}"):
            published = recompute(spark, settings, packed, accepted_share=accept_refused, whole=whole)
        cut = ", ".join(
            f"partition {partition} offset {offset}" for partition, offset in sorted(published.offsets.items())
        )
        console.print(
            f"batch view: {published.rows:,} predictions by {packed.name}/{published.version}; "
            f"{published.scored:,} events scored in {published.duration_s:.1f} s; horizon at {cut}"
        )
        if published.refused:
            console.print(
                f"refused: {published.refused:,} events, kept with their reasons in lake.{packed.name}.quarantine"
            )

    _one_after_the_other(packed_ones, score)


@batch.command("maintain")
def batch_maintain(
    application: ApplicationName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go, and leave it")] = False,
) -> None:
    """Remove what nobody needs any more, and write many small files together.

    Old snapshots of the lake's tables, checkpoints, prepared data, records of the outbox: the archive does the same by
    itself every hour. What a model's card, the horizon or a tag names stays, and so does each of the last days.
    """
    from batch_layer.upkeep import maintain

    settings, packed = _packed(application)
    spark = _spark(settings, "maintain")
    with console.status("looking" if dry_run else "tidying"):
        freed = maintain(spark, settings, packed.name, dry_run=dry_run)
    table = Table("what", "would go" if dry_run else "gone", "bytes", title=f"upkeep of {packed.name}")
    for what, objects in freed.objects.items():
        table.add_row(what, f"{objects:,}", f"{freed.bytes[what]:,}" if freed.bytes[what] else "")
    console.print(table if freed.objects else f"{packed.name} has nothing to tidy")


@batch.command("skew")
def batch_skew(application: ApplicationName) -> None:
    """Score about a thousand of the last day's archived events again, and compare with what the stream said of them.

    The archive does the same by itself once a day; 'deeplambda speed skew' shows what came of it.
    """
    from batch_layer.skew import measure

    settings, packed = _packed(application)
    spark = _spark(settings, "skew")
    with console.status("scoring"):
        found = measure(spark, settings, packed.name)
    for each in found:
        console.print(
            f"{packed.name}/{each.version}, {each.field}: {each.different:,} of {each.compared:,} events differ"
            + (f", such as {', '.join(each.examples)}" if each.examples else ""),
            highlight=False,
        )
    if not found:
        console.print("nothing could be compared: no event of the last day was scored by the stream and is archived")


def _hyperparameters(given: list[str] | None, *applications: PackedApplication) -> dict[str, Any]:
    """What is set, checked against each application before anything is started. Raises: BadInput."""
    from batch_layer.trainer import all_hyperparameters

    chosen = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {pair!r} is not NAME=VALUE", "write for example --set epochs=2")
        try:
            chosen[name] = from_json(value)
        except ValueError:
            chosen[name] = value
    for packed in applications:
        all_hyperparameters(packed.load(), chosen)
    return chosen
