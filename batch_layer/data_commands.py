"""`deeplambda data`: raw objects, the quality of what comes of them, and human errors undone."""

from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.progress import DownloadColumn
from rich.table import Column, Table

from batch_layer.command_start import ApplicationName, console, packed_application, progress, spark_of
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import NoTopic, NotReady
from deeplambda.loading import PackedApplication
from deeplambda.records.lifecycle import DataChanged
from deeplambda.records.shown import shown
from deeplambda.service.lag import TopicEnds
from deeplambda.state import outbox, registry
from deeplambda.state.card import Card
from deeplambda.state.data_changes import changes, operator

app = typer.Typer(no_args_is_help=True)

_SHOWN = 3

Snapshot = Annotated[int, typer.Argument(help="a number from 'deeplambda data history'")]
Branch = Annotated[str, typer.Argument(help="the branch that ingest, or 'deeplambda data history', names")]
Why = Annotated[str, typer.Option("--why", help="the reason, which is kept")]
Retrain = Annotated[bool, typer.Option("--retrain", help="begin a generation: train and offer a version without them")]
Who = Annotated[str | None, typer.Option("--who", help="who says so; default: the account that runs the command")]


@app.command("put")
def data_put(
    application: ApplicationName,
    folder: Annotated[Path, typer.Argument(help="the folder that holds the files", exists=True, file_okay=False)],
) -> None:
    """Upload the application's raw files as they are, each with its SHA-256.

    What is on S3 already, byte for byte, is not sent again, nor are the parts of a large file that S3 has: an
    interrupted run is taken up by running it again.
    """
    from batch_layer.raw_objects import files_of, raw_key

    settings, packed = packed_application(application)
    names, others = files_of(packed.load(), folder)
    store, sent = ObjectStore(settings), 0
    with progress(DownloadColumn()) as bars:
        bar = bars.add_task("upload", total=sum((folder / name).stat().st_size for name in names))
        for name in names:
            sent += store.put_file(raw_key(packed.name, name), folder / name, partial(bars.advance, bar))
    console.print(f"{sent} uploaded, {len(names) - sent} there already: s3://{store.bucket}/{raw_key(packed.name, '')}")
    if others:
        more = f" and {len(others) - _SHOWN:,} more" if len(others) > _SHOWN else ""
        console.print(f"left out, as no source names them: {', '.join(map(shown, others[:_SHOWN]))}{more}")


@app.command("list")
def data_list(application: ApplicationName) -> None:
    """Show the application's raw objects, their sizes and recorded hashes."""
    from batch_layer.raw_objects import raw_key

    settings, packed = packed_application(application)
    store = ObjectStore(settings)
    table = Table("object", "bytes", "SHA-256")
    for found in store.list(raw_key(packed.name, "")):
        table.add_row(shown(found.key), f"{found.bytes:,}", store.digest(found.key) or "not recorded")
    console.print(table)


@app.command("quality")
def data_quality(
    application: ApplicationName,
    days: Annotated[int, typer.Option(help="show the last days", min=1)] = 7,
    measure: Annotated[bool, typer.Option(help="first measure the days of events that have ended since")] = True,
) -> None:
    """Show the quality of ingests and of days of events, in six dimensions; what an expectation forbids is red."""
    from batch_layer.event_quality import measure_events, newest_measures
    from batch_layer.quality import broken
    from deeplambda.adapters.lake import create_tables

    settings, packed = packed_application(application)
    spark = spark_of(settings, "quality")
    create_tables(spark, packed.load())
    if measure:
        with console.status("measuring the events of the days that have ended"):
            measure_events(spark, settings, packed)
    expectations = packed.load().expectations
    table = Table("of", "dimension", "measure", "field", "value", "rows", title=f"quality of {packed.name}")
    rows = newest_measures(spark, packed.name, days)
    for of, found in rows:
        style = "red" if broken(expectations, [found]) else ""
        names = of, found.dimension, found.measure, found.field or ""
        table.add_row(*map(shown, names), f"{found.value:.4g}", f"{found.rows:,}", style=style)
    console.print(table if rows else f"nothing of {packed.name} has been measured in the last {days} days")


@app.command("history")
def data_history(application: ApplicationName) -> None:
    """Show the snapshots of the examples, who learned from each, and what people have changed, and why.

    ★ marks the snapshot that readers and training see.
    """
    from batch_layer.data_history import history

    settings, packed = packed_application(application)
    cards = _cards(settings, packed.name)
    names = ("snapshot", "what", "now at", "before")  # which a narrow terminal must not cut
    snapshot, what, now_at, before = (Column(name, overflow="fold") for name in names)
    table = Table("", snapshot, "committed", "added", "rows", "models", "waits on", title=f"examples of {packed.name}")
    for each in history(spark_of(settings, "history"), packed.name, cards):
        versions = ", ".join(map(str, each.versions))
        at = f"{each.at:%Y-%m-%d %H:%M:%S}"
        mark = "★" if each.current else ""
        table.add_row(mark, str(each.id), at, f"{each.added:,}", f"{each.rows:,}", versions, each.branch or "")
    console.print(table)
    with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
        found = changes(connection, packed.name)
    decided = Table("when", "who", what, "rows", now_at, before, "why", title="changes by people")
    for row in found:
        subject = f"{row.kind} {row.subject or row.table_name}"
        at = f"{row.at:%Y-%m-%d %H:%M:%S}"
        figures = f"{row.changed_rows:,}", str(row.snapshot), str(row.previous)
        decided.add_row(at, shown(row.who), shown(subject), *figures, shown(row.why))
    if found:
        console.print(decided)


@app.command("diff")
def data_diff(application: ApplicationName, one: Snapshot, other: Snapshot) -> None:
    """Show which of the examples that count are added, removed or changed from one snapshot to the other."""
    from batch_layer.data_history import difference

    settings, packed = packed_application(application)
    table = Table("", "split", "label", "rows", "such as", title=f"examples of {packed.name}: {one} → {other}")
    found = difference(spark_of(settings, "diff"), packed.name, one, other)
    for each in found:
        such_as = shown(", ".join(each.such_as))
        table.add_row(each.kind, each.split, shown(each.label or ""), f"{each.rows:,}", such_as)
    console.print(table if found else f"the same examples of {packed.name} count in both")


@app.command("impact")
def data_impact(application: ApplicationName, snapshot: Snapshot) -> None:
    """Show which model versions learned from what a snapshot added."""
    from batch_layer.data_history import impact

    settings, packed = packed_application(application)
    cards = _cards(settings, packed.name)
    versions = impact(spark_of(settings, "impact"), packed.name, snapshot, cards)
    _name_versions(settings, packed.name, versions)


@app.command("rollback")
def data_rollback(
    application: ApplicationName,
    to: Annotated[int, typer.Option("--to", help="a snapshot from 'deeplambda data history'")],
    why: Why,
    who: Who = None,
    retrain: Retrain = False,
) -> None:
    """Have an earlier snapshot of the examples count again, and name the models that learned from what goes.

    No row is lost: the same command leads back. The next ingest passes over the rows that were taken back.
    """
    from batch_layer.data_history import roll_back

    settings, packed = packed_application(application)
    spark, engine = spark_of(settings, "rollback"), mysql.engine(settings, "platform")
    change = roll_back(spark, engine, packed.name, to, who=who or operator(), why=why)
    _tell(settings)
    console.print(
        f"[green]rolled back[/]: {packed.name} has the examples of snapshot {to}; {change.rows:,} rows count no more. "
        f"To undo it: deeplambda data rollback {packed.name} --to {change.previous} --why …",
        soft_wrap=True,
    )
    _name_versions(settings, packed.name, change.versions)
    _replace(settings, packed, spark, change, retrain=retrain)


@app.command("publish")
def data_publish(application: ApplicationName, branch: Branch, why: Why, who: Who = None) -> None:
    """Have rows count that a hard expectation holds back: your word against it, which is kept."""
    from batch_layer.data_history import publish_held

    settings, packed = packed_application(application)
    spark, engine = spark_of(settings, "publish"), mysql.engine(settings, "platform")
    change = publish_held(spark, engine, packed.name, branch, who=who or operator(), why=why)
    _tell(settings)
    console.print(f"[green]published[/]: {change.rows:,} rows of {packed.name}; the snapshot is {change.snapshot}")


@app.command("drop")
def data_drop(application: ApplicationName, branch: Branch, why: Why, who: Who = None) -> None:
    """Give rows up that a hard expectation holds back; the next ingest passes them over."""
    from batch_layer.data_history import drop_held

    settings, packed = packed_application(application)
    spark, engine = spark_of(settings, "drop"), mysql.engine(settings, "platform")
    change = drop_held(spark, engine, packed.name, branch, who=who or operator(), why=why)
    _tell(settings)
    console.print(f"dropped: {change.rows:,} rows of {packed.name}, which never counted")


@app.command("withdraw")
def data_withdraw(
    application: ApplicationName,
    why: Why,
    who: Who = None,
    topic: Annotated[Literal["events", "labels"], typer.Option(help="what was sent in error")] = "events",
    since: Annotated[
        datetime | None, typer.Option("--from", help="that Kafka took at this time (UTC) or later")
    ] = None,
    until: Annotated[datetime | None, typer.Option("--to", help="and before this time")] = None,
    producer: Annotated[str | None, typer.Option(help="whose source, as a CloudEvent, this is")] = None,
    where: Annotated[
        str | None, typer.Option(help="a condition in Spark SQL on the archive's columns and json")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say how many, and name some")] = False,
    wait: Annotated[bool, typer.Option(help="wait until the archive has what Kafka has by now")] = True,
    recompute: Annotated[bool, typer.Option(help="take them out of the batch view at once")] = True,
    retrain: Retrain = False,
) -> None:
    """Have events or labels that were sent in error count no more; all that is given must hold of them.

    They stay in the archive, marked in the table `withdrawals`, and are out of training, recomputation and views.
    'deeplambda data restore' undoes it.
    """
    from batch_layer import withdrawals
    from batch_layer.recompute import recompute as recompute_view
    from deeplambda.adapters.lake import create_tables
    from deeplambda.state.horizon_store import read_horizon

    settings, packed = packed_application(application)
    spark, engine = spark_of(settings, "withdraw"), mysql.engine(settings, "platform")
    create_tables(spark, packed.load())
    choice = withdrawals.Choice(topic=topic, since=_utc(since), until=_utc(until), producer=producer, where=where)
    if wait:
        _await_archive(settings, spark, packed.name, topic)
    if dry_run:
        rows = withdrawals.chosen(spark, packed.name, choice)
        names = shown(", ".join(str(row.event_id) for row in rows.select("event_id").limit(5).collect()))
        console.print(f"would be withdrawn: {rows.count():,} {topic} of {packed.name}, such as {names}")
        return
    change = withdrawals.withdraw(spark, engine, packed.name, choice, who=who or operator(), why=why)
    if change is None:
        console.print(f"no {topic} of {packed.name} that count are meant")
    else:
        _tell(settings)
        console.print(
            f"[green]withdrawn[/]: {change.rows:,} {topic} of {packed.name}. "
            f"To undo it: deeplambda data restore {packed.name} {change.subject} --why …",
            soft_wrap=True,
        )
        _name_versions(settings, packed.name, change.versions)
    with mysql.mysql_errors(), engine.connect() as connection:
        visible = read_horizon(connection, packed.name)
    if topic == "events" and recompute and withdrawals.are_shown(spark, packed.name, visible):
        try:
            with console.status("taking them out of the batch view"):
                published = recompute_view(spark, settings, packed)
        except Exception:
            console.print(
                "[yellow]the batch view still has them[/]: 'deeplambda batch recompute "
                f"{packed.name}', or this command again, takes them out",
                soft_wrap=True,
            )
            if change is not None and change.versions:
                console.print(f"to replace the versions: deeplambda batch generations {packed.name} --start")
            raise
        console.print(f"the batch view has {published.rows:,} predictions without what is withdrawn")
    if change is not None:
        _replace(settings, packed, spark, change, retrain=retrain)


@app.command("restore")
def data_restore(
    application: ApplicationName,
    withdrawal: Annotated[str, typer.Argument(help="its name, from 'deeplambda data history'")],
    why: Why,
    who: Who = None,
) -> None:
    """Have events or labels count again that were withdrawn."""
    from batch_layer import withdrawals

    settings, packed = packed_application(application)
    spark, engine = spark_of(settings, "restore"), mysql.engine(settings, "platform")
    change = withdrawals.restore(spark, engine, packed.name, withdrawal, who=who or operator(), why=why)
    _tell(settings)
    console.print(
        f"restored: {change.rows:,} records of {packed.name}. The batch view has them again after: "
        f"deeplambda batch recompute {packed.name} --whole",
        soft_wrap=True,
    )


def _await_archive(settings: Settings, spark: Any, application: str, topic: str) -> None:
    """Wait until the archive has what Kafka has at this moment: a withdrawal marks what is there, and nothing later."""
    from batch_layer.archived import archived_to

    name, wanted = f"{application}.{topic}", dict[int, int]()
    with closing(TopicEnds(settings, [name])) as ends, suppress(NoTopic):
        wanted = ends.ask()[name]
    with console.status(f"waiting until the archive has the {topic} that Kafka has"):
        try:
            archived_to(spark, settings, application, topic, wanted)
        except NotReady as exc:
            remedy = f"{exc.remedy}; 'deeplambda data withdraw … --no-wait' marks what it has"
            raise NotReady(exc.message, remedy) from exc


def _cards(settings: Settings, application: str) -> list[Card]:
    with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
        return registry.cards(connection, application)


def _name_versions(settings: Settings, application: str, versions: list[int]) -> None:
    with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
        champion = registry.champion(connection, application)
    serving = champion.version if champion else None
    for version in versions:
        serves = f", the champion: 'deeplambda model rollback {application}'" if version == serving else ""
        console.print(f"{application}/{version} learned from it{serves}", soft_wrap=True)
    if not versions:
        console.print("no model learned from it")


def _replace(settings: Settings, packed: PackedApplication, spark: Any, change: DataChanged, *, retrain: bool) -> None:
    """Have a generation replace the versions that learned from what counts no more, or say how."""
    from batch_layer import generation_commands

    if retrain:
        why = f"data {change.kind.replace('_', ' ')}: {change.why}"
        generation_commands.start(settings, packed, "person", why, console, lambda: spark)
    elif change.versions:
        console.print(f"to replace them: deeplambda batch generations {packed.name} --start")


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)


def _tell(settings: Settings) -> None:
    with Publisher(settings) as publisher:
        outbox.relay(mysql.engine(settings, "platform"), publisher)
