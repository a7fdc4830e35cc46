"""What a person sees of the batch layer at work: a line for each step, a progress bar for each epoch."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from deeplambda.records.lifecycle import EpochTrained, PartitionPrepared
from deeplambda.records.shown import shown

if TYPE_CHECKING:  # they bring Spark and PyTorch, which a help text need not wait for
    from batch_layer.data_set import DataSet
    from batch_layer.ingest import Ingested
    from batch_layer.trials import Trial
    from deeplambda.state.card import Card


class EpochBars:
    """A bar for each epoch: rows per second and loss as it goes, the test split's metrics when it is done.

    Use it as a context. `Console(quiet=True)` shows nothing.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
        )
        self._bar: TaskID | None = None
        self._bars: dict[int, TaskID] = {}

    def begin(self, epoch: int, epochs: int, rows: float) -> None:
        """rows: as many as the epoch is expected to have; 0 while no shard has come."""
        metrics = "" if rows else "waiting for the first shard"
        self._bar = self._progress.add_task(f"epoch {epoch}/{epochs}", total=round(rows) or None, metrics=metrics)
        self._bars[epoch] = self._bar

    def expect(self, rows: float) -> None:
        """The epoch turned out to have another number of rows."""
        if self._bar is not None:
            self._progress.update(self._bar, total=round(rows))

    def advance(self, rows: int, loss: float) -> None:
        """rows: since the last call. loss: mean of the epoch so far."""
        if self._bar is not None:
            self._progress.advance(self._bar, rows)
            speed = self._progress.tasks[self._bar].speed or 0
            self._progress.update(self._bar, metrics=f"{speed:,.0f} rows/s, loss {loss:.4f}")

    def done(self, trained: EpochTrained) -> None:
        """Leave the finished epoch's metrics beside its bar."""
        if (bar := self._bars.get(trained.epoch)) is not None:
            quality = ", ".join(f"{name} {value:.4f}" for name, value in trained.metrics.items())
            metrics = f"{trained.rows / trained.duration_s:,.0f} rows/s, loss {trained.loss:.4f}; test: {quality}"
            self._progress.update(bar, total=trained.rows, completed=trained.rows, metrics=metrics)

    def __enter__(self) -> "EpochBars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class PipelineConsole:
    """Prints each step of the loop when it is done, with a spinner or a bar until then."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def working(self, description: str) -> AbstractContextManager[object]:
        """A spinner."""
        return self._console.status(description)

    def ingested(self, ingested: "Ingested") -> None:
        """Rows by split, new rows and corrections, quarantined rows."""
        for split, rows in sorted(ingested.found.items(), reverse=True):
            corrected = f", {ingested.corrected[split]:,} corrections" if split in ingested.corrected else ""
            self._console.print(
                f"ingested {split}: {rows:,} rows good, {ingested.added.get(split, 0):,} of them new{corrected}"
            )
        for rows, what in (
            (ingested.duplicates, "duplicates of later rows, which were kept"),
            (ingested.left_out, "outside the intervals of the splits, left out"),
            (ingested.unlabelled, "without a label, which training passes over"),
        ):
            if rows:
                self._console.print(f"{rows:,} rows {what}")
        for reason in ingested.unexpected:
            self._console.print(f"[yellow]unexpected[/]: {shown(reason)}")
        read = f"{ingested.objects:,} objects read"
        if ingested.passed_over:
            read += f", {ingested.passed_over:,} passed over as read before"
        self._console.print(f"quarantined: {ingested.quarantined:,} rows; {read}; {ingested.duration_s:.1f} s")

    def prepared(self, dataset: "DataSet", announcements: Sequence[PartitionPrepared]) -> None:
        """Shards, rows, bytes; of labelled events, how many are in which split, and why others are not."""
        self._console.print(
            f"prepared {dataset.id}: {len(announcements)} shards, {sum(each.rows for each in announcements):,} rows, "
            f"{sum(each.size_bytes for each in announcements) / 1e6:,.0f} MB, snapshot {dataset.snapshot}"
            + (f"; {dataset.copied} shards as in an earlier data set" if dataset.copied else "")
            + (f"; {dataset.unlabelled:,} rows without a label passed over" if dataset.unlabelled else "")
        )
        if (found := dataset.labelled_events) is not None:
            by_split: Counter[str] = Counter()
            for each in announcements:
                by_split[each.split] += each.events
            told = {"labelled events": +by_split, "labels refused": found.refused, "events left out": dataset.left_out}
            for what, counts in told.items():
                if counts:
                    listed = ", ".join(f"{rows:,} {name}" for name, rows in counts.items())
                    self._console.print(f"{what}: {shown(listed)}")

    def training(self) -> EpochBars:
        """A bar for each epoch."""
        return EpochBars(self._console)

    def published(self, card: "Card") -> None:
        """The version and its metrics."""
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in card.metrics.items())
        self._console.print(
            f"published {card.application}/{card.version}: {metrics}; "
            f"trained in {card.training_s:.1f} s on {card.device}"
        )
        if card.init_from is not None:
            anew = f"; for its other outputs made anew: {', '.join(card.made_anew)}" if card.made_anew else ""
            self._console.print(f"it began from the weights of {card.init_from}{anew}")


class TrialTable:
    """A table of a tuning's trials, as they train: their draws, epochs and metric. Use it as a context.

    metric: by which trials are compared. where: they run.
    """

    def __init__(self, console: Console, metric: str, where: str) -> None:
        self._metric, self._where = metric, where
        self._trials: dict[str, Trial] = {}
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=2)

    def told(self, trial: "Trial") -> None:
        """Show a trial's new state."""
        self._trials[trial.key] = trial

    def best_first(self, trials: Sequence["Trial"]) -> None:
        """Show the trials in this order."""
        self._trials = {trial.key: trial for trial in trials}

    def _table(self) -> Table:
        trials = list(self._trials.values())
        names = list(trials[0].drawn) if trials else []
        table = Table(*names, "epochs", f"{self._metric} on rows set aside", title=f"trials on {self._where}")
        for trial in trials:
            figure = shown(trial.failure or (f"{trial.metrics[-1]:.4f}" if trial.metrics else ""))
            draw = (short(trial.drawn[name]) for name in names)
            table.add_row(*draw, str(trial.epochs), figure, style=None if trial.ended else "dim")
        return table

    def __enter__(self) -> "TrialTable":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if not self._live.console.is_terminal:
            self._live.console.line()  # Rich leaves the table's last line open in a file


def short(value: Any) -> str:
    """A hyperparameter, to be read."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
