"""`deeplambda speed dead-letters`: what was refused, why, and how it is sent again."""

from datetime import UTC, datetime
from heapq import nlargest
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from deeplambda.adapters.mysql import engine
from deeplambda.config import load_settings
from deeplambda.errors import BadInput
from deeplambda.records.dead_letters import DeadLetter
from deeplambda.records.shown import as_json, shown
from deeplambda.state.data_changes import operator
from speed_layer.dead_letter_replay import Filter, Replayed, already, letters, replay

console = Console()
_SHOWN_BYTES = 2_000


class _ListsByDefault(TyperGroup):
    """`dead-letters APPLICATION` is `dead-letters list APPLICATION`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_ListsByDefault, no_args_is_help=True)

ApplicationName = Annotated[str, typer.Argument(help="an application's name")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="only of this reason")]
Since = Annotated[datetime | None, typer.Option("--since", help="written at this time (UTC) or later")]
Until = Annotated[datetime | None, typer.Option("--until", help="written before this time (UTC)")]
Version = Annotated[int | None, typer.Option("--version", help="refused while this model version served")]


@app.command("list")
def list_letters(
    application: ApplicationName,
    count: Annotated[int, typer.Option("--rows", "-n", help="how many of the newest", min=1)] = 20,
    reason: ReasonOption = None,
    since: Since = None,
    until: Until = None,
    version: Version = None,
) -> None:
    """Show the newest events that were refused, and why; ↻ marks those that were sent again."""
    settings = load_settings()
    chosen = _filter(reason, since, until, version)
    enough = count if chosen == Filter() else None
    newest = nlargest(count, letters(settings, application, chosen, enough), key=lambda letter: letter.dead_at)
    marked = already(engine(settings, "platform"), newest) if newest else {}
    table = Table("", "received", "position", "reason", "version", "detail", title=f"dead letters of {application}")
    for letter in reversed(newest):
        again = "↻" if marked.get((letter.topic, letter.partition, letter.offset)) is False else ""
        served = "" if letter.model_version is None else str(letter.model_version)
        received = f"{letter.received_at:%Y-%m-%d %H:%M:%S}"
        texts = (shown(each) for each in (letter.record_key, letter.reason, served, letter.detail))
        table.add_row(again, received, *texts)
    console.print(table if newest else f"{application} has no dead letters")


@app.command("show")
def show(
    application: ApplicationName,
    position: Annotated[str, typer.Argument(help="of the refused record, as 'list' shows it: TOPIC/PARTITION/OFFSET")],
) -> None:
    """Print one dead letter whole: its reason, its key, and its bytes as text, as far as they are text."""
    found = next(
        (each for each in letters(load_settings(), application, Filter()) if each.record_key == position), None
    )
    if found is None:
        raise BadInput(
            f"{application} has no dead letter about {position!r}", f"see 'deeplambda speed dead-letters {application}'"
        )
    console.print(as_json(_readable(found)), soft_wrap=True)


@app.command("replay")
def replay_letters(
    application: ApplicationName,
    send: Annotated[bool, typer.Option("--send", help="do it; without it, only say what would be sent")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="also those that were refused again after they had been sent")
    ] = False,
    reason: ReasonOption = None,
    since: Since = None,
    until: Until = None,
    version: Version = None,
) -> None:
    """Send refused events again, once what refused them is mended; a second time sends nothing."""
    settings, chosen = load_settings(), _filter(reason, since, until, version)
    platform = engine(settings, "platform")
    done = replay(settings, platform, application, chosen, who=operator(), dry_run=not send, again=again)
    console.print(shown(_told(done, application, sent=send)))


def _told(done: Replayed, application: str, *, sent: bool) -> str:
    lines = [f"{'sent again' if sent else 'would be sent again'}: {done.sent.total():,} events of {application}"]
    lines += [f"  {rows:,} {reason}" for reason, rows in done.sent.most_common()]
    lines += [f"  left out: {rows:,}, {why}" for why, rows in done.left_out.most_common()]
    if done.sent and not sent:
        lines.append("the same command with --send sends them")
    return "\n".join(lines)


def _readable(letter: DeadLetter) -> dict[str, Any]:
    read = letter.model_dump(mode="json", exclude={"key_base64", "value_base64"})
    value = letter.value or b""
    return read | {
        "key": None if letter.key is None else letter.key.decode(errors="replace"),
        "value": value[:_SHOWN_BYTES].decode(errors="replace"),
    }


def _filter(reason: str | None, since: datetime | None, until: datetime | None, version: int | None) -> Filter:
    from_, to = (None if at is None else at.replace(tzinfo=UTC) for at in (since, until))
    return Filter(reason=reason, since=from_, until=to, version=version)
