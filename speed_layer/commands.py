"""The speed layer's commands: `deeplambda speed`."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from sqlalchemy import select

from deeplambda.adapters.kafka import consumer, end_offsets, kafka_errors
from deeplambda.adapters.mysql import engine, mysql_errors
from deeplambda.config import Settings, load_settings
from deeplambda.errors import Conflict
from deeplambda.records import topics
from deeplambda.records.expiry import gap_of
from deeplambda.records.predictions import Prediction
from deeplambda.records.shown import shown
from deeplambda.service.expiry import expired, skip
from deeplambda.state.tables import SKEW
from speed_layer.backfill import Backfill, planned, score_again
from speed_layer.dead_letter_commands import app as dead_letters

speed = typer.Typer(no_args_is_help=True)
speed.add_typer(dead_letters, name="dead-letters", help="Show the events that were refused, and send them again.")
console = Console()
_ROWS = 40

ApplicationName = Annotated[str, typer.Argument(help="an application's name")]


@speed.command("watch")
def watch(
    application: ApplicationName,
    count: Annotated[int | None, typer.Option("--rows", "-n", help="stop after this many predictions")] = None,
) -> None:
    """Print predictions as they come, from now on; Ctrl-C ends it."""
    settings = load_settings()
    topic = topics.predictions(application)
    try:
        for made in islice(_predictions(settings, topic), count):
            took_ms = (made.predicted_at - made.received_at).total_seconds() * 1e3
            sure = "" if made.confidence is None else f" ({made.confidence:.1%})"
            console.print(
                f"{shown(made.event_id)}  [bold]{shown(made.prediction)}[/]{sure}  "
                f"by {application}/{made.model_version}, {took_ms:,.0f} ms after Kafka had it"
            )
    except KeyboardInterrupt:
        console.print("stopped")


@speed.command("replay", hidden=True)  # its name before: it was taken for that of dead letters
@speed.command("backfill")
def backfill(
    application: ApplicationName,
    since: Annotated[
        datetime, typer.Option("--from", help="the broker took the first event at this time (UTC) or later")
    ],
    until: Annotated[
        datetime | None, typer.Option("--to", help="and the last one before it; without: until now")
    ] = None,
    share: Annotated[float, typer.Option(help="of the time that it works, beside live events", min=0.01, max=1)] = 0.2,
    send: Annotated[bool, typer.Option("--send", help="do it; without it, only say what would be scored")] = False,
) -> None:
    """Have the champion score events again that another version has scored; a second time does nothing.

    Of events that the batch view has absorbed, 'deeplambda batch recompute' does it.
    """
    settings = load_settings()
    platform = engine(settings, "platform")
    from_, to = since.replace(tzinfo=UTC), None if until is None else until.replace(tzinfo=UTC)
    found = planned(settings, platform, application, from_, to)
    console.print(_planned(found))
    if not send:
        console.print("the same command with --send scores them" if found.events else "nothing is left to score")
        return
    scored = refused = looked_at = 0
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task("scored again", total=found.events)
        for these, made in score_again(settings, platform, found, share):
            progress.advance(task, these)
            looked_at, scored, refused = looked_at + these, scored + made, refused + these - made
    console.print(_scored(found.events, looked_at, scored, refused))


def _scored(planned_events: int, looked_at: int, scored: int, refused: int) -> str:
    said = f"scored again: {scored:,} events"
    if refused:
        said += f"; refused, and left as they were: {refused:,}"
    if looked_at < planned_events:
        said += f"; no longer there: {planned_events - looked_at:,}"
    return said


def _planned(found: Backfill) -> str:
    lines = [f"to be scored again by {found.application}/{found.champion}: {found.events:,} events"]
    lines += [f"  {events:,} of version {version}" for version, events in sorted(found.by_version.items())]
    if found.done:
        lines.append(f"  left out: {found.done:,}, scored by it already")
    if found.in_batch_view:
        lines.append(
            f"  left out: {found.in_batch_view:,}, in the batch view: "
            f"'deeplambda batch recompute {found.application}' scores those again"
        )
    return "\n".join(lines)


@speed.command("skew")
def skew(application: ApplicationName) -> None:
    """Show by version and field, over the last days, of how many events batch says something else than the stream did.

    The archive compares about a thousand events once a day; 'deeplambda batch skew' does it now.
    """
    settings = load_settings()
    query = select(SKEW).where(SKEW.c.application == application).order_by(SKEW.c.at.desc(), SKEW.c.id).limit(_ROWS)
    with mysql_errors(), engine(settings, "platform").connect() as connection:
        rows = connection.execute(query).all()
    table = Table("measured", "version", "field", "compared", "different", "examples", title=f"skew of {application}")
    for row in rows:
        figures = f"{row.compared:,}", f"{row.different:,}", shown(", ".join(row.examples))
        table.add_row(f"{row.at:%Y-%m-%d %H:%M}Z", str(row.version), shown(row.field), *figures)
    console.print(table if rows else f"nothing compared yet: 'deeplambda batch skew {application}' does it now")


@speed.command("skip-expired")
def skip_expired(
    application: ApplicationName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be given up")] = False,
) -> None:
    """Let readers go on that were stopped for longer than Kafka keeps records; the gap is recorded.

    Of events that the archive lost no batch view will know; of those that the stream lost there is no prediction until
    the next recomputation. Where a topic had ended before its readers' positions, what was sent to it until it had
    grown to them is given up.
    """
    settings = load_settings()
    lost = expired(settings, application)
    if not lost:
        raise Conflict(f"no reader of {application} waits for records that it has lost", "see 'deeplambda status'")
    for record in lost:
        console.print(f"{record.reader}: offsets {gap_of(record)} of {record.topic}", highlight=False)
    if not dry_run:
        skip(settings, engine(settings, "platform"), lost)
        console.print("given up, and recorded in the table skipped_records; the readers go on within a minute")


def _predictions(settings: Settings, topic: str) -> Iterator[Prediction]:
    """Those that come from now on, for ever; a record that is none is the views' to tell of."""
    starts = end_offsets(settings, topic)
    reader = consumer(settings, topic)
    try:
        with kafka_errors(settings):
            for partition in reader.assignment():
                reader.seek(partition, starts.get(partition.partition, 0))
            while True:
                for records in reader.poll(timeout_ms=500).values():
                    for record in records:
                        try:
                            made = Prediction.model_validate_json(record.value or b"")
                        except ValueError:
                            continue
                        yield made
    finally:
        reader.close()
