"""The speed layer's commands: `deeplambda speed`."""

from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deeplambda.adapters.kafka import consumer, end_offsets, kafka_errors
from deeplambda.config import Settings, load_settings
from deeplambda.records import topics
from deeplambda.records.dead_letters import DeadLetter
from deeplambda.records.predictions import Prediction

speed = typer.Typer(no_args_is_help=True)
console = Console()

ApplicationName = Annotated[str, typer.Argument(help="an application's name")]


@speed.command("watch")
def watch(
    application: ApplicationName,
    count: Annotated[int | None, typer.Option("-n", help="stop after this many predictions")] = None,
) -> None:
    """Print predictions as they come, from now on; Ctrl-C ends it."""
    settings = load_settings()
    topic = topics.predictions(application)
    try:
        for value in islice(_records(settings, topic, end_offsets(settings, topic), follow=True), count):
            made = Prediction.model_validate_json(value)
            took_ms = (made.predicted_at - made.received_at).total_seconds() * 1e3
            sure = "" if made.confidence is None else f" ({made.confidence:.1%})"
            console.print(
                f"{made.event_id}  [bold]{made.prediction}[/]{sure}  by {application}/{made.model_version}, "
                f"{took_ms:,.0f} ms after Kafka had it"
            )
    except KeyboardInterrupt:
        console.print("stopped")


@speed.command("dead-letters")
def dead_letters(
    application: ApplicationName,
    count: Annotated[int, typer.Option("-n", help="how many of the newest to show")] = 20,
) -> None:
    """Show the events that were refused, and why."""
    settings = load_settings()
    topic = topics.dead_letters(application)
    starts = {partition: max(0, end - count) for partition, end in end_offsets(settings, topic).items()}
    letters = [DeadLetter.model_validate_json(value) for value in _records(settings, topic, starts, follow=False)]
    table = Table("received", "position", "reason", "detail", title=f"dead letters of {application}")
    for letter in sorted(letters, key=lambda letter: letter.dead_at)[-count:]:
        position = f"{letter.topic}/{letter.partition}/{letter.offset}"
        table.add_row(f"{letter.received_at:%Y-%m-%d %H:%M:%S}", position, letter.reason, letter.detail)
    console.print(table if letters else f"{application} has no dead letters")


def _records(settings: Settings, topic: str, starts: dict[int, int], *, follow: bool) -> Iterator[bytes]:
    """Values from the offsets `starts` on: up to what is there now, or for ever."""
    ends = end_offsets(settings, topic)
    reader = consumer(settings, topic)
    try:
        with kafka_errors(settings):
            for partition in reader.assignment():
                reader.seek(partition, starts[partition.partition])
            while follow or any(reader.position(p) < ends[p.partition] for p in reader.assignment()):
                for records in reader.poll(timeout_ms=500).values():
                    yield from (record.value for record in records)
    finally:
        reader.close()
