"""`deeplambda check` and `deeplambda new`: what an author of an application runs before there is a stack."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deeplambda.config import load_settings
from deeplambda.records.shown import shown
from deeplambda.testing.findings import Report

__all__ = ["check", "new"]

check = typer.Typer()
new = typer.Typer()
console = Console()

_WIDTH = 80
_SEEN_CHARACTERS = 300


@check.command("check")
def check_command(
    name: Annotated[str, typer.Argument(help="an application's name, or the path of its folder")],
    data: Annotated[
        Path | None,
        typer.Option(help="a folder with its raw objects, to check with real rows", exists=True, file_okay=False),
    ] = None,
) -> None:
    """Try an application against the whole contract, without the stack; exit code 1 when something is wrong."""
    from deeplambda.testing.checker import check_application

    with console.status(f"checking {name}"):
        report = check_application(name, data)
    console.print(as_table(report), width=min(_WIDTH, console.width))
    if report.request and not report.findings:
        console.print("\nOnce a version of it serves, this asks for a prediction:")
        console.print(report.request, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if report.findings else 0)


def as_table(report: Report) -> Table:
    """A row for each check, and for each thing that it found."""
    wrong = len(report.findings)
    table = Table(title=f"{report.application}: {wrong} wrong" if wrong else f"{report.application} keeps the contract")
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold")
    for name, seen in report.passed.items():
        table.add_row(f"[green]{name}[/]", shown(_shortened(seen)))
    for finding in report.findings:
        place = f"[bold]{shown(finding.place)}[/]: " if finding.place else ""
        table.add_row(
            f"[red]{finding.check}[/]", f"{place}{shown(finding.problem)}\n[yellow]{shown(finding.remedy)}[/]"
        )
    for name in report.skipped:
        table.add_row(f"[dim]{name}[/]", "[dim]not tried: correct the above first[/]")
    return table


def _shortened(text: str) -> str:
    return text if len(text) <= _SEEN_CHARACTERS else f"{text[:_SEEN_CHARACTERS]}…"


@new.command("new")
def new_command(
    name: Annotated[str, typer.Argument(help="name of the application: lower-case letters, digits and underscores")],
    sample: Annotated[
        Path,
        typer.Option("--from", help="a sample of your data: a file, or a folder of files or images", exists=True),
    ],
    label: Annotated[
        str | None,
        typer.Option(
            help="the column to predict; by default one called label, target, class or the like, else a guess"
        ),
    ] = None,
) -> None:
    """Write a first application.py after a sample of your data; it runs as it is, and says what is yours to decide."""
    from deeplambda.testing.draft import write_draft

    settings = load_settings()
    draft = write_draft(name, sample, settings.applications_dir, label)
    place = shlex.quote(str(sample if sample.is_dir() else sample.parent))
    served = [*(each for each in settings.applications if each != name), name]
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    stack_env = settings.data_dir / "stack.env"
    if stack_env.is_relative_to(Path.cwd()):
        stack_env = stack_env.relative_to(Path.cwd())
    console.print(f"wrote {draft.file}: {draft.summary}", highlight=False, soft_wrap=True)
    console.print("Next:", highlight=False)
    for step in (
        f"read it; its comments that begin with DECIDE are for you ({draft.decisions} of them)",
        f"deeplambda check {name} --data {place}",
        f"echo {shlex.quote(f'DEEPLAMBDA_APPLICATIONS={json.dumps(served)}')} >> {shlex.quote(str(stack_env))}",
        "deeplambda up",
        f"deeplambda data put {name} {place}",
        f"deeplambda batch run {name}",
    ):
        console.print(f"  {step}", markup=False, highlight=False, soft_wrap=True)
