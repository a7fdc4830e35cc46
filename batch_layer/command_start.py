"""What a command of the batch layer begins with: the application's code, Spark, a bar on the terminal."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from deeplambda.config import Settings, load_settings
from deeplambda.loading import PackedApplication, pack_application

ApplicationName = Annotated[str, typer.Argument(help="an application's name, or the path of its folder")]
console = Console()


def packed_application(name: str) -> tuple[Settings, PackedApplication]:
    """The settings, and one application. Raises: UnknownApplication."""
    settings, (packed,) = all_packed([name])
    return settings, packed


def all_packed(names: Iterable[str]) -> tuple[Settings, list[PackedApplication]]:
    """The settings, and several applications. Raises: UnknownApplication."""
    settings = load_settings()
    return settings, [pack_application(name, settings) for name in names]


def spark_of(settings: Settings, what: str) -> Any:
    """The process's Spark session; what: the command, for the log's name."""
    from deeplambda.adapters.lake import spark_session

    log = settings.data_dir / "logs" / f"batch-{what}.log"
    with console.status(f"starting Spark ({settings.spark_master}); it logs to {log}"), _stderr_of_children(log):
        return spark_session(settings, what)


@contextmanager
def _stderr_of_children(log: Path) -> Iterator[None]:
    """Let processes that start meanwhile, which is Spark's JVM, write their stderr to `log`: ours is for people."""
    log.parent.mkdir(parents=True, exist_ok=True)
    own = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)


def progress(done: ProgressColumn) -> Progress:
    """A bar that shows how much is done as `done` does."""
    return Progress(TextColumn("{task.description}"), BarColumn(), done, TimeElapsedColumn(), console=console)
