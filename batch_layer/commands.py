"""The batch layer's commands: `deeplambda data`, `deeplambda batch`, `deeplambda model`."""

import logging
import shlex
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Annotated, Any

import typer
from pydantic_core import from_json, to_json
from rich.progress import MofNCompleteColumn
from rich.table import Table

from batch_layer.command_start import ApplicationName, all_packed, console, packed_application, progress, spark_of
from batch_layer.console import PipelineConsole, TrialTable
from batch_layer.data_commands import app as data
from batch_layer.model_commands import app as model
from batch_layer.refusals import ACCEPTED_SHARE
from deeplambda.application import deciding_metric
from deeplambda.config import load_settings
from deeplambda.errors import BadInput, ConfigurationError, DeepLambdaError
from deeplambda.loading import PackedApplication, find_folder, pack_application
from deeplambda.records.shown import shown
from deeplambda.service.full_disk import full_disk
from deeplambda.service.loops import in_one_line
from deeplambda.state.data_changes import operator
from deeplambda.state.generation_store import Cause

__all__ = ["batch", "data", "model"]

batch = typer.Typer(no_args_is_help=True)
_log = logging.getLogger(__name__)

ApplicationNames = Annotated[
    list[str] | None, typer.Argument(metavar="APPLICATION...", help="applications, by name or the path of the folder")
]
Served = Annotated[bool, typer.Option("--served", help="all applications that DEEPLAMBDA_APPLICATIONS names")]
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

InitFrom = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        metavar="VERSION",
        help="begin from this version's weights: a number, 'champion', or another application's, as 'digits/3'; "
        "a last layer for other classes is made anew",
    ),
]


def _wanted(applications: list[str] | None, *, served: bool) -> Sequence[str]:
    """Raises: BadInput unless one of the two is given."""
    if bool(applications) == served:
        raise BadInput("either applications are named, or all that are served", "give their names, or --served")
    return load_settings().applications if served else applications or ()


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


@batch.command("ingest")
def batch_ingest(
    application: ApplicationName,
    whole: Annotated[
        bool, typer.Option("--whole", help="read all raw objects, not only those that were put since the last time")
    ] = False,
) -> None:
    """Check every row of the raw objects and append the new ones to `lake.<application>.examples`.

    While the application's code is the same and raw objects are only added, those of earlier times are passed over.
    """
    from batch_layer.pipeline import ingest_examples

    settings, packed = packed_application(application)
    ingest_examples(spark_of(settings, "ingest"), settings, packed, PipelineConsole(console), whole=whole)


@batch.command("prepare")
def batch_prepare(
    application: ApplicationName,
    snapshot: Annotated[int | None, typer.Option(help="Iceberg snapshot of the examples; default: the newest")] = None,
) -> None:
    """Turn a snapshot of the examples into shards of features on S3, announced on Kafka one by one."""
    from batch_layer.data_set import data_set
    from batch_layer.pipeline import prepare_shards

    settings, packed = packed_application(application)
    spark = spark_of(settings, "prepare")
    prepare_shards(spark, settings, packed, data_set(spark, packed, snapshot), PipelineConsole(console))


@batch.command("train")
def batch_train(
    application: ApplicationName, set_: Hyperparameter = None, workers: Workers = 1, init_from: InitFrom = None
) -> None:
    """Train on the newest snapshot's data set and publish the model; goes on where a killed run was."""
    from batch_layer.data_set import data_set
    from batch_layer.pipeline import train_and_publish

    settings, packed = packed_application(application)
    overrides = _hyperparameters(set_, packed)
    spark = spark_of(settings, "train")
    dataset = data_set(spark, packed)
    given: Any = {"workers": workers, "init_from": init_from}
    train_and_publish(spark, settings, packed, dataset, overrides, PipelineConsole(console), **given)


@model.command("lineage")
def model_lineage(
    application: ApplicationName,
    version: Annotated[int, typer.Argument(help="a number from 'deeplambda model list'", min=1)],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON for programs")] = False,
) -> None:
    """Show what a version was made of: raw objects, rows, events, labels, code, and the versions it began from."""
    from batch_layer.lineage import lineage, lineage_tree

    settings, packed = packed_application(application)
    found = lineage(spark_of(settings, "lineage"), settings, packed.name, version)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        console.print(lineage_tree(found))


@batch.command("tune")
def batch_tune(
    application: ApplicationName,
    trials: Annotated[int, typer.Option(help="how many sets of hyperparameters to try", min=1)] = 8,
    set_: Hyperparameter = None,
    cpus: Annotated[float, typer.Option(help="cores of a trial, or its share of one", min=0.01)] = 1,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs of a trial, or its share of one; default: one, if there is any", min=0)
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="train with the best on all rows, publish that version")
    ] = False,
    promote: Annotated[bool, typer.Option(help="make the published version the champion, if it may be")] = True,
) -> None:
    """Try hyperparameters from the application's search space, and say which train the best model.

    Trials are compared on training rows that they do not train on. They run on the Ray cluster of
    DEEPLAMBDA_RAY_ADDRESS where that is set, else on all cores of this machine. Each is kept on S3 as it stands: run
    again, the command goes on where it was, or adds trials where it is told of more. The last line is the command that
    trains with the best.
    """
    from batch_layer import gate
    from batch_layer.data_set import data_set
    from batch_layer.pipeline import prepare_shards, train_and_publish
    from batch_layer.tune import tune

    settings, packed = packed_application(application)
    overrides, shown = _hyperparameters(set_, packed), PipelineConsole(console)
    spark = spark_of(settings, "tune")
    dataset = data_set(spark, packed)
    prepare_shards(spark, settings, packed, dataset, shown)
    spark.stop()  # its executors' cores and memory are free for trials
    with TrialTable(console, deciding_metric(packed.load()), settings.ray_address or "this machine") as table:
        found = tune(
            settings,
            packed,
            dataset=dataset.id,
            overrides=overrides,
            trials=trials,
            cpus=cpus,
            gpus=gpus,
            told=table.told,
        )
        table.best_first(found)
    chosen = overrides | found[0].drawn
    if publish:
        card = train_and_publish(spark_of(settings, "tune"), settings, packed, dataset, chosen, shown)
        if promote:
            why = f"trained with the best of {len(found)} trials"
            gate.promote(settings, packed, card.version, who=operator(), why=why)
            console.print(f"[green]champion[/]: {packed.name}/{card.version}")
    values = {name: value if isinstance(value, str) else to_json(value).decode() for name, value in chosen.items()}
    arguments = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    command = shlex.join(["deeplambda", "batch", "train", application, *arguments])
    console.print(command, soft_wrap=True, highlight=False)


@batch.command("run")
def batch_run(
    applications: ApplicationNames = None,
    served: Served = False,
    set_: Hyperparameter = None,
    promote: Annotated[bool, typer.Option(help="make the new version the champion, if it may be")] = True,
    workers: Workers = 1,
    init_from: InitFrom = None,
) -> None:
    """Ingest, prepare, train, publish and promote, in one go; training starts while shards are still prepared."""
    from batch_layer.pipeline import run_pipeline

    settings, packed_ones = all_packed(_wanted(applications, served=served))
    overrides = _hyperparameters(set_, *packed_ones)
    spark = spark_of(settings, "run")

    def run(packed: PackedApplication) -> None:
        given: Any = {"promotes": promote, "workers": workers, "init_from": init_from}
        card = run_pipeline(spark, settings, packed, overrides, PipelineConsole(console), **given)
        if promote:
            console.print(f"[green]champion[/]: {packed.name}/{card.version}")

    _one_after_the_other(packed_ones, run)


@batch.command("generations")
def batch_generations(
    application: Annotated[str | None, typer.Argument(help="default: all that are served")] = None,
    start: Annotated[bool, typer.Option("--start", help="begin one now, or take up the one that was left")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on showing, until Ctrl-C")] = False,
    cause: Annotated[Cause, typer.Option(hidden=True)] = "person",
    why: Annotated[str, typer.Option(help="what is kept as the reason of the one that is begun")] = "asked for",
) -> None:
    """Show what the platform has trained by itself, step by step, and what the next training waits for.

    A generation takes new labels to a trained version and offers it to the gate. With DEEPLAMBDA_GENERATIONS the part
    `generations` begins them by itself; one runs at a time.
    """
    from batch_layer import generation_commands

    settings = load_settings()
    if start:
        if application is None:
            raise BadInput("--start needs an application", "name one")
        packed = pack_application(application, settings)
        spark = partial(spark_of, settings, "generation")
        generation_commands.start(settings, packed, cause, why, console, spark)
    elif application is None:
        generation_commands.show(settings, settings.applications, console, follow=follow)
    else:
        name = find_folder(application, settings).name
        generation_commands.show(settings, [name], console, follow=follow)


@batch.command("recompute")
def batch_recompute(
    applications: ApplicationNames = None,
    served: Served = False,
    accept_refused: Annotated[
        float,
        typer.Option(metavar="SHARE", help="of the events that have a prediction, how many may lose it", min=0, max=1),
    ] = ACCEPTED_SHARE,
    whole: Annotated[
        bool, typer.Option("--whole", help="score all events, not only those since the last time")
    ] = False,
) -> None:
    """Score the archive with the champion and move the horizon: the batch view takes over from the stream.

    While the champion is the same, only the events that came since the last time are scored and added. A run that was
    killed while it scored all of a large archive is taken up by running it again.
    Events that the champion's code or model refuses are kept in the application's table `quarantine`.
    """
    from batch_layer.recompute import recompute

    settings, packed_ones = all_packed(_wanted(applications, served=served))
    spark = spark_of(settings, "recompute")

    def score(packed: PackedApplication) -> None:
        with progress(MofNCompleteColumn()) as bars:
            bar = bars.add_task(f"scoring the archive of {packed.name}", total=None)

            def show(scored: int, spans: int) -> None:
                bars.update(bar, completed=scored, total=spans)

            published = recompute(spark, settings, packed, accepted_share=accept_refused, whole=whole, progress=show)
        cut = ", ".join(
            f"partition {partition} offset {offset}" for partition, offset in sorted(published.offsets.items())
        )
        console.print(
            f"batch view: {published.rows:,} predictions by {packed.name}/{published.version}; "
            f"{published.scored:,} events scored in {published.duration_s:.1f} s; horizon at {cut}"
        )
        if published.taken_up:
            console.print(f"of them {published.taken_up:,} had been scored by a run that was broken off")
        if published.refused:
            console.print(
                f"refused: {published.refused:,} events, kept with their reasons in lake.{packed.name}.quarantine"
            )

        if published.missing:
            console.print(
                f"lost: {published.missing:,} events had a prediction, and are not in lake.{packed.name}.events",
                soft_wrap=True,
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

    settings, packed = packed_application(application)
    spark = spark_of(settings, "maintain")
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

    settings, packed = packed_application(application)
    spark = spark_of(settings, "skew")
    with console.status("scoring"):
        found = measure(spark, settings, packed.name)
    for each in found:
        console.print(
            f"{packed.name}/{each.version}, {each.field}: {each.different:,} of {each.compared:,} events differ"
            + (f", such as {shown(', '.join(each.examples))}" if each.examples else ""),
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
