"""What a person sees while the stack starts, and once it is up."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from deeplambda.config import Settings
from deeplambda.stack.local.bringup import Step, StepReport

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
Next: [bold]deeplambda status[/], [bold]deeplambda logs PART[/], [bold]deeplambda batch run digits[/]"""


def _described(report: StepReport) -> str:
    style = _STYLES.get(report.step, "default")
    return f"[{style}]{report.step.value}[/] [dim]{report.note}[/]"


def _print_when_done(console: Console, report: StepReport) -> None:
    if report.step in {Step.READY, Step.FAILED}:
        console.print(f"{report.part.name:<10} {report.seconds:5.1f} s  {_described(report)}", soft_wrap=True)
