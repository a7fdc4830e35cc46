"""`deeplambda batch generations`: trainings by the platform itself, as a table; or one begun now."""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from batch_layer.console import PipelineConsole
from batch_layer.news import News
from batch_layer.triggers import Due, decide
from deeplambda.adapters.mysql import engine, mysql_errors
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.loading import PackedApplication
from deeplambda.records.shown import shown
from deeplambda.state.generation_store import Cause, Generation, is_worked_on, listed

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_REFRESH_S = 1.0
_STYLES = {"running": "cyan", "promoted": "green", "rejected": "yellow", "held": "yellow", "failed": "red"}


def start(
    settings: Settings,
    packed: PackedApplication,
    cause: Cause,
    why: str,
    console: Console,
    start_spark: "Callable[[], SparkSession]",
) -> None:
    """Take up the generation that was left, or begin one, and see it to its end."""
    from batch_layer.generation import run_generation

    due = Due(cause=cause, why=why)
    ended = run_generation(settings, packed, due, PipelineConsole(console), start_spark)
    console.print(f"generation {ended.number} of {packed.name}: {_state(ended)}; {shown(ended.verdict or '')}")


def show(settings: Settings, applications: Iterable[str], console: Console, *, follow: bool) -> None:
    """A table for each application and what its next generation waits for; follow: again every second, until Ctrl-C."""
    names = tuple(applications)
    with News(settings, names) as news:
        if not follow:
            console.print(*_tables(settings, news, names))
            return
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(Group(*_tables(settings, news, names)), refresh=True)
                time.sleep(_REFRESH_S)


def _tables(settings: Settings, news: News, applications: Iterable[str]) -> Iterable[RenderableType]:
    for application in applications:
        with mysql_errors(), engine(settings, "platform").connect() as connection:
            yield table(listed(connection, application), application)
            if not is_worked_on(connection, application):
                next_one = decide(settings, news.known(connection, application), now())
                yield f"next, where DEEPLAMBDA_GENERATIONS is on: {shown(next_one.why)}"


def table(generations: Iterable[Generation], application: str) -> Table:
    """A row for each generation, the newest first."""
    made = Table(
        *("", "why", "state", "step", "began", "took", "version", "verdict"),
        title=f"generations of {application}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for each in generations:
        took = (each.ended_at or each.heartbeat_at) - each.started_at
        made.add_row(
            str(each.number),
            shown(f"{each.cause}: {each.why}"),
            _state(each),
            each.step if each.attempts < 2 else f"{each.step}, attempt {each.attempts}",
            f"{each.started_at:%m-%d %H:%M:%S}Z",
            f"{took.total_seconds():.0f} s",
            "" if each.version is None else str(each.version),
            shown(each.verdict or ""),
        )
    return made


def _state(generation: Generation) -> str:
    style = _STYLES.get(generation.state)
    return f"[{style}]{generation.state}[/]" if style else generation.state
