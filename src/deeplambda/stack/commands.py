"""The local stack: Kafka, S3, MySQL, Hive and the platform's own services on this machine."""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from deeplambda.config import Settings, load_settings
from deeplambda.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True)
_out = Console(width=None if sys.stdout.isatty() else 160)

_Parts = Annotated[list[str] | None, typer.Argument(help="only these parts; all of them if none is named")]


@app.command()
def up(
    parts: _Parts = None,
    free_ports: Annotated[bool, typer.Option(help="use free ports, and keep them in <data folder>/stack.env")] = False,
) -> None:
    """Start the stack and wait until every part answers. Starts only what is missing; parts bring what they need.

    A part that runs with other settings or other code, an application's or the platform's, than it would be started
    with now is started anew, no other is; its line says why. So a new application is served once it is named in the
    settings.
    """
    from deeplambda.stack.local.bringup import bring_up
    from deeplambda.stack.local.display import addresses, shown_steps
    from deeplambda.stack.local.parts import with_needs
    from deeplambda.stack.local.ports import write_free_ports
    from deeplambda.stack.local.supervisor import Supervisor
    from deeplambda.stack.secrets import make_missing_secrets

    wanted = with_needs(parts or ())
    settings = _settings_of_local_stack()
    make_missing_secrets(settings, settings.data_dir / "secrets")
    if free_ports and not Supervisor(settings).is_up():
        write_free_ports(settings)
    load_settings.cache_clear()
    settings = load_settings()
    with shown_steps(_out) as show:
        bring_up(settings, wanted, show)
    _out.print(addresses(settings), highlight=False, soft_wrap=True)


@app.command()
def down(parts: _Parts = None) -> None:
    """Stop the stack, or the parts named, gracefully; no process is left behind. Data stays."""
    from deeplambda.stack.local.parts import PARTS, part_named
    from deeplambda.stack.local.teardown import take_down

    chosen = [part_named(name) for name in parts] if parts else list(PARTS)
    killed = take_down(_settings_of_local_stack(), chosen, report=lambda part: _out.print(f"stopped {part.name}"))
    if killed:
        _out.print(f"[yellow]killed {len(killed)} processes that did not stop by themselves[/]")
    _out.print("The stack is down." if not parts else f"Down: {', '.join(parts)}.")


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="print JSON for programs")] = False) -> None:
    """Each part's health, port, memory, restarts, and which application fails in it.

    Exit code 1 when a part is unwell or nothing runs. A part in which an application fails is well, for it serves the
    others; the note names that one, and a line below says why.
    """
    from deeplambda.stack.local.display import health_table, remarks
    from deeplambda.stack.local.health import stack_health

    found = stack_health(_settings_of_local_stack())
    if as_json:
        print(json.dumps([health.to_json() for health in found], indent=2))
    else:
        _out.print(health_table(found))
        for remark in remarks(found):
            _out.print(remark, soft_wrap=True, highlight=False)
        total = sum(health.memory_bytes or 0 for health in found)
        _out.print(f"memory in all: {total / 2**30:.2f} GiB")
    if any(health.is_trouble for health in found) or all(health.health == "stopped" for health in found):
        raise typer.Exit(1)


@app.command()
def logs(
    part: Annotated[str, typer.Argument(help="a part, as 'deeplambda status' names it")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on with what is written from now on")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="how many of the last lines")] = 50,
) -> None:
    """Print the end of a part's log."""
    from deeplambda.records.shown import plain
    from deeplambda.stack.local import logs as log_files
    from deeplambda.stack.local.parts import part_named
    from deeplambda.stack.local.supervisor import Supervisor

    log = Supervisor(_settings_of_local_stack()).log_dir / f"{part_named(part).name}.log"
    if not log.exists() and not follow:
        raise ConfigurationError(f"{part} has no log yet", "start it with 'deeplambda up'")
    print(plain(log_files.last_lines(log, lines)))
    if follow:
        for written in log_files.follow(log):
            sys.stdout.write(plain(written))
            sys.stdout.flush()


@app.command()
def doctor() -> None:
    """Look for what this machine lacks, and say the remedy. Exit code 1 when something is missing.

    In a container: whether the settings of .env can be, and whether each service answers.
    """
    from deeplambda.stack.containers.doctor import examine_containers
    from deeplambda.stack.local.doctor import examine

    settings = load_settings()
    findings = examine_containers(settings) if settings.listen_host else examine(settings)
    for finding in findings:
        mark = "[green]ok     [/]" if finding.is_fine else "[red]missing[/]"
        _out.print(f"{mark} [bold]{finding.subject}[/]: {finding.found}", highlight=False)
        if finding.remedy:
            _out.print(f"        [yellow]{finding.remedy}[/]", highlight=False)
    if not all(finding.is_fine for finding in findings):
        raise typer.Exit(1)


@app.command("kafka-tool", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def kafka_tool(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="kafka-topics, kafka-console-producer, kafka-console-consumer, …")],
) -> None:
    """Run one of Kafka's own command line tools against the stack's broker."""
    from deeplambda.stack.local.kafka import run_tool

    run_tool(load_settings(), name, context.args)


def _settings_of_local_stack() -> Settings:
    """Raises: ConfigurationError in a container, where a second stream or archive would be started beside the first."""
    settings = load_settings()
    if settings.listen_host:
        raise ConfigurationError(
            "this is a container, and the platform's parts are containers beside it",
            "ask from outside: docker compose up, ps, logs and stop, or kubectl get pods and logs",
        )
    return settings
