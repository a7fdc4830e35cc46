"""The command `deeplambda`: its sub-commands come from the layers, by entry points of the group `deeplambda.commands`.

Only the sub-command that is called is imported, so `--help` is quick and a layer whose libraries are not installed
disturbs no other.
"""

import os
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points

import typer
from rich.console import Console

from deeplambda.config import load_settings
from deeplambda.errors import ConfigurationError, DeepLambdaError
from deeplambda.records.shown import shown
from deeplambda.service.full_disk import full_disk
from deeplambda.stack import commands as stack

_HELP = {
    "new": "Write a first application.py after a sample of your data.",
    "check": "Try an application against the whole contract, without the stack.",
    "stack": "The local stack: start it, look at it, stop it.",
    "containers": "What the containers of docker compose run; `secret` prints a password.",
    "data": "Training data on S3: put it, list it, its history and quality; roll back, withdraw, publish.",
    "batch": "The batch layer: ingest, prepare, train, tune, recompute, maintain, generations.",
    "model": "Models: list, show, promote, roll back, verify; lineage, drift, shadow and canary.",
    "speed": "The speed layer: watch predictions, score events again, dead letters, skew, going on after a gap.",
    "serve": "The serving layer: views, Hive gateway, query service.",
    "sql": "Run a query over recent and recomputed results, and print a table.",
}


def main() -> None:
    """Run the command line; a DeepLambdaError is one line and exit code 1 (a traceback with DEEPLAMBDA_DEBUG=1)."""
    try:
        try:
            build(sys.argv[1:])()
        except ModuleNotFoundError as exc:
            raise _missing_library(exc) from exc
        except Exception as exc:  # Spark's or S3's, or of our own making
            if (full := full_disk(exc, load_settings())) is None:
                raise
            raise full from exc
    except* DeepLambdaError as group:
        if os.environ.get("DEEPLAMBDA_DEBUG") == "1":
            raise
        for error in _flat(group):
            _print_error(error)
        sys.exit(1)


def build(arguments: list[str]) -> typer.Typer:
    """The Typer application for one call: loads the sub-command named in `arguments`, and only lists the others."""
    app = typer.Typer(
        name="deeplambda",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="A Lambda architecture for deep learning: batch, speed and serving layers over Kafka, S3, MySQL and Hive.",
    )
    for command in (stack.up, stack.down, stack.status, stack.logs, stack.doctor):
        app.command(rich_help_panel="The local stack")(command)
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    for entry in sorted(
        entry_points(group="deeplambda.commands"), key=lambda entry: [*_HELP, entry.name].index(entry.name)
    ):
        _add(app, entry, is_called=entry.name == called)
    return app


def _add(app: typer.Typer, entry: EntryPoint, is_called: bool) -> None:
    help_text = _HELP.get(entry.name, f"From {entry.value.partition(':')[0]}.")
    panel = "The layers"
    if not is_called:
        app.command(entry.name, help=help_text, rich_help_panel=panel)(_not_loaded)
        return
    loaded: typer.Typer = entry.load()
    commands = loaded.registered_commands
    if len(commands) == 1 and not loaded.registered_groups and commands[0].name in {None, entry.name}:
        commands[0].name = entry.name
        app.registered_commands.append(commands[0])  # `deeplambda sql …`, not `deeplambda sql sql …`
    else:
        app.add_typer(loaded, name=entry.name, help=help_text, rich_help_panel=panel)


def _not_loaded() -> None:
    """Placeholder for a sub-command that is only listed by `--help`; never called."""


def _missing_library(exc: ModuleNotFoundError) -> DeepLambdaError:
    name = (exc.name or "").partition(".")[0]
    own = {entry.module.partition(".")[0] for entry in entry_points(group="deeplambda.commands")}
    if name in own:
        return ConfigurationError(
            f"this installation has no module {exc.name!r}", "install DeepLambda anew: rm .venv/ready && make unit"
        )
    return ConfigurationError(
        f"this command needs the library {name!r}, which is not installed", "run: pip install 'deeplambda[all]'"
    )


def _flat(group: BaseExceptionGroup[DeepLambdaError]) -> Iterator[DeepLambdaError]:
    for error in group.exceptions:
        if isinstance(error, DeepLambdaError):
            yield error
        else:
            yield from _flat(error)


def _print_error(error: DeepLambdaError) -> None:
    console = Console(stderr=True)
    remedy = f"\n[yellow]{shown(error.remedy)}[/]" if error.remedy else ""
    console.print(f"[red]{shown(error.message)}[/]{remedy}", highlight=False, soft_wrap=True)
