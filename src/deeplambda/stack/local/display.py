"""What a person sees while the stack starts, and once it is up."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from deeplambda.config import Settings, is_loopback, port_of
from deeplambda.records.shown import shown
from deeplambda.service.heartbeat import BEHIND, FAILING
from deeplambda.stack.local.bringup import Step, StepReport
from deeplambda.stack.local.health import Health

_COLOURS = {"well": "green", "elsewhere": "green", "unwell": "red", "stopped": "dim"}
_NOTE_CHARACTERS = 24  # what the other columns leave of 80
_STYLES = {Step.WAITING: "dim", Step.READY: "green", Step.FAILED: "red"}


@contextmanager
def shown_steps(console: Console) -> Iterator[Callable[[StepReport], None]]:
    """A line for each part, with its step and its time; into a pipe, a line for each part that is done."""
    if not console.is_terminal:
        yield lambda report: _print_when_done(console, report)
        return
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.fields[part]:<10}"),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(report: StepReport) -> None:
            name, is_done = report.part.name, report.step in {Step.READY, Step.FAILED}
            if name not in tasks:
                tasks[name] = bars.add_task("", start=False, total=1, part=name)
            if report.step is Step.PREPARING:
                bars.start_task(tasks[name])
            bars.update(tasks[name], description=_described(report), completed=int(is_done))

        yield show


def addresses(settings: Settings) -> str:
    """Addresses, folders and next steps, as rich's markup: what `deeplambda up` prints at its end."""
    application = next(iter(settings.applications), "APPLICATION")
    return f"""\
[bold]The stack is up.[/]
  Kafka            {settings.kafka_bootstrap}
  S3               {settings.s3_endpoint or "AWS"}, bucket {settings.s3_bucket}, key {settings.s3_access_key}
  MySQL            {settings.mysql_address}, database {settings.mysql_database}
  Hive metastore   {settings.metastore_uri}
  Hive gateway     {settings.hive_address}
  Model service    {settings.model_url}
  Query service    {settings.query_url}
  Data             {settings.data_dir}
  Logs             {settings.data_dir / "logs"}
  Secrets          {settings.data_dir / "secrets"} (one file each; yours alone)
Next: [bold]deeplambda status[/], [bold]deeplambda logs PART[/], [bold]deeplambda batch run {application}[/]"""


def health_table(found: Iterable[Health]) -> Table:
    """A row for each part, which fits 80 columns: what is long stands in `remarks`."""
    headings = ("part", "health", "port", "memory", "restarts", "up for")
    table = Table(*headings, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("note", overflow="fold")
    for health in found:
        note = "" if len(health.note) > _NOTE_CHARACTERS else health.note
        table.add_row(
            health.part,
            f"[{_COLOURS[health.health]}]{health.health}[/]",
            str(port_of(health.address)) if health.address and is_loopback(health.address) else "",
            f"{health.memory_bytes / 2**20:.0f} MiB" if health.memory_bytes else "",
            str(health.restarts),
            _duration(health.uptime_s) if health.uptime_s is not None else "",
            shown(note),
        )
    return table


def remarks(found: Iterable[Health]) -> Iterator[str]:
    """Below the table, as rich's markup: why a part is unwell, and what fails or is behind in one that is well."""
    for health in found:
        if len(health.note) > _NOTE_CHARACTERS:
            yield f"{health.part}: {shown(health.note)}"
        for name, state in health.states.items():
            if state.startswith((FAILING, BEHIND)):
                yield f"[yellow]{health.part}: {shown(name)} {shown(state)}[/]"


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _described(report: StepReport) -> str:
    style = _STYLES.get(report.step, "default")
    return f"[{style}]{report.step.value}[/] [dim]{shown(report.note)}[/]"


def _print_when_done(console: Console, report: StepReport) -> None:
    if report.step in {Step.READY, Step.FAILED}:
        console.print(f"{report.part.name:<10} {report.seconds:5.1f} s  {_described(report)}", soft_wrap=True)
