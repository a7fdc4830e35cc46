"""One progress bar for each epoch: rows per second and loss as it goes, the test split's metrics when it is done."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from deeplambda.records.lifecycle import EpochTrained


class EpochBars:
    """Use it as a context. `Console(quiet=True)` shows nothing."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._bar: TaskID | None = None

    def begin(self, epoch: int, epochs: int, rows: float) -> None:
        """rows: as many as the epoch is expected to have; 0 while no shard has come."""
        figures = "" if rows else "waiting for the first shard"
        self._bar = self._progress.add_task(f"epoch {epoch}/{epochs}", total=round(rows) or None, figures=figures)

    def expect(self, rows: float) -> None:
        """The epoch turned out to have another number of rows."""
        if self._bar is not None:
            self._progress.update(self._bar, total=round(rows))

    def advance(self, rows: int, loss: float) -> None:
        """rows: since the last call. loss: mean of the epoch so far."""
        if self._bar is not None:
            self._progress.advance(self._bar, rows)
            speed = self._progress.tasks[self._bar].speed or 0
            self._progress.update(self._bar, figures=f"{speed:,.0f} rows/s, loss {loss:.4f}")

    def done(self, trained: EpochTrained) -> None:
        """Leave the finished epoch's figures beside its bar."""
        if self._bar is not None:
            metrics = ", ".join(f"{name} {value:.4f}" for name, value in trained.metrics.items())
            figures = f"{trained.rows / trained.duration_s:,.0f} rows/s, loss {trained.loss:.4f}; test: {metrics}"
            self._progress.update(self._bar, total=trained.rows, completed=trained.rows, figures=figures)

    def __enter__(self) -> "EpochBars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
