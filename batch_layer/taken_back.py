"""What was taken back: rows that counted once and do not now, because a person rolled the examples back or withdrew
events or labels. It says what of a data set that is, and which versions learned from it."""

from collections.abc import Iterable
from datetime import datetime
from functools import cache

from pyspark.sql import SparkSession

from batch_layer import held_rows
from batch_layer.counted_events import NONE_WITHDRAWN, POSITION, withdrawals_snapshot
from batch_layer.data_history import has_rows_of
from batch_layer.data_set import DataSet
from batch_layer.lineage import that_learned
from batch_layer.withdrawals import Marks
from deeplambda.adapters.lake import read_snapshot
from deeplambda.state.card import Card


class TakenBack:
    """All that is taken back at this moment, of one application. What was asked of it is known from then on."""

    def __init__(self, spark: SparkSession, application: str) -> None:
        self._spark, self._application = spark, application
        self._state = self._asked()
        rows = held_rows.taken_back(spark, application, "ingested_at")
        times: set[datetime] = {row.ingested_at for row in rows.collect()} if rows is not None else set()
        self._rolled_back = cache(lambda snapshot: has_rows_of(spark, application, times, snapshot))
        self._marks = cache(self._marks_since)

    def is_current(self) -> bool:
        """Whether nothing was taken back, or restored, since it was made."""
        return self._asked() == self._state

    def _asked(self) -> tuple[set[tuple[str, int]], int | None]:
        for table in ("examples", "withdrawals"):  # other processes change them
            if self._spark.catalog.tableExists(f"lake.{self._application}.{table}"):
                self._spark.catalog.refreshTable(f"lake.{self._application}.{table}")
        state = held_rows.state(self._spark, self._application)
        return state, withdrawals_snapshot(self._spark, self._application)

    def of(self, dataset: DataSet) -> str | None:
        """What of a data set is, in words; None: nothing."""
        if self._rolled_back(dataset.snapshot):
            return "examples of its data set were rolled back"
        found = dataset.labelled_events
        if (
            found
            and found.events
            and self._withdrawn(found.events_snapshot, found.labels_snapshot, found.withdrawals_snapshot)
        ):
            return "labelled events of its data set were withdrawn"
        return None

    def versions(self, cards: Iterable[Card]) -> list[int]:
        """Those that learned from some of it. cards: the oldest first."""
        return that_learned(
            cards,
            lambda card: (
                self._rolled_back(card.snapshot)
                or self._withdrawn(card.events_snapshot, card.labels_snapshot, card.withdrawals_snapshot)
            ),
        )

    def _withdrawn(self, events: int | None, labels: int | None, known: int | None) -> bool:
        """known: the snapshot of the withdrawals that the data set was made without."""
        marks = None if events is None else self._marks(known)
        return marks is not None and marks.are_in(events, labels)

    def _marks_since(self, known: int | None) -> Marks | None:
        newest = withdrawals_snapshot(self._spark, self._application)
        if newest in (None, known):
            return None
        table = f"lake.{self._application}.withdrawals"
        marks = read_snapshot(self._spark, table, newest)
        if known not in (None, NONE_WITHDRAWN):
            marks = marks.join(read_snapshot(self._spark, table, known), ["topic", *POSITION], "left_anti")
        return Marks(self._spark, self._application, marks)
