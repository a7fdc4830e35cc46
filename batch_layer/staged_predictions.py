"""Staged predictions: what a recomputation of the whole archive has scored so far, so that one that was killed goes on.

1. The archive is cut into spans of the broker's time of about as many events each, by what Iceberg knows of its files.
2. Each span is scored by one Spark job, whose one commit adds it to `lake.<application>.staged_predictions`.
3. A run for the same champion, in place of the same batch view, takes up what it finds there, with the snapshot of the
   archive that the run before had pinned, and that a tag keeps meanwhile. Any other run removes it before it begins.
4. All of it goes once a batch view is published or found wanting, or when nobody has taken it up for
   `DEEPLAMBDA_KEPT_DAYS`. It stays where too many events would lose their prediction, for a person may accept that.
"""

import math
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from sqlalchemy import Engine

from deeplambda.adapters import mysql
from deeplambda.adapters.lake import change_tag, current_snapshot, read_snapshot, snapshot_size, tag_snapshot
from deeplambda.clock import now
from deeplambda.errors import BadInput, Conflict, TooManyRefused
from deeplambda.records.predictions import SEEN_SCHEMA

SPAN_EVENTS = 500_000
"""Events of a span, for each task that runs at a time: half a minute of a thin model, three of the digits CNN, beside
which a commit's second is little. A kill loses no more. A smaller archive is scored in one go, and not staged."""

_TAG = "staged-"
"""How a tag on the archive begins, before a recomputation's name, that keeps the snapshot which staged rows are of."""


class _Span(NamedTuple):
    """A span that is staged: of which run, and how many events it has."""

    recomputation: str
    events_snapshot: int
    span_events: int
    span: int
    events: int


class Staging:
    """An application's staged predictions, as a context of the run that uses them, under the lock `recompute`.

    recomputation: what predictions follow from, beside the events: runs that agree in it go on with each other's.
    kept_days: how long what a run leaves may be taken up.
    """

    def __init__(self, spark: SparkSession, application: str, recomputation: str, kept_days: int) -> None:
        self._spark, self._recomputation, self._kept_days = spark, recomputation, kept_days
        self._archive, self._table = f"lake.{application}.events", f"lake.{application}.staged_predictions"
        self._left = self._staged()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wanting = kind is not None and issubclass(kind, (BadInput, Conflict)) and not issubclass(kind, TooManyRefused)
        if kind is None or wanting:  # not NotReady, nor Spark's
            self._clear(self._recomputation)

    def pinned(self) -> int | None:
        """The snapshot of the archive that a run like this one had pinned, which was broken off; None without one."""
        pinned = {each.events_snapshot for each in self._left if each.recomputation == self._recomputation}
        if not pinned:
            return None
        there = self._spark.sql(f"SELECT snapshot_id FROM {self._archive}.snapshots").collect()
        return next(iter(pinned & {row.snapshot_id for row in there}), None)

    def taken_up(self, pinned: int) -> int:
        """How many events of the snapshot were scored by the run that was broken off."""
        return sum(each.events for each in self._of_run(self._left, pinned))

    def score(
        self, pinned: int, scored: Callable[[DataFrame], DataFrame], progress: Callable[[int, int], None]
    ) -> DataFrame | None:
        """All events of the snapshot as `scored` gives them; None where they are too few to be staged.

        progress: called with how many spans there are already, and in all. Raises: Conflict.
        """
        left = self._of_run(self._left, pinned)
        if not left:
            self._clear()
        size = left[0].span_events if left else SPAN_EVENTS * self._spark.sparkContext.defaultParallelism
        rows = snapshot_size(self._spark, self._archive, pinned).rows
        if rows <= size:
            return None
        tag_snapshot(self._spark, self._archive, f"{_TAG}{self._recomputation}", pinned, self._kept_days)
        spans, done = self._spans(pinned, size), {each.span for each in left}
        for number, span in enumerate(spans):
            progress(number, len(spans))
            if number not in done:
                identity = (self._recomputation, pinned, size, number)
                columns = zip(_Span._fields, identity, strict=False)
                events = read_snapshot(self._spark, self._archive, pinned).where(span)
                staged = scored(events).withColumns({name: F.lit(value) for name, value in columns})
                # The rows of a span are one partition: by default one task would get and write all of them.
                writer = staged.writeTo(self._table).option("distribution-mode", "none")
                writer.option("fanout-enabled", "true").append()
        progress(len(spans), len(spans))
        # Of one snapshot, and this run's alone: a run that has lost its lock unawares may write beside the next one.
        at = current_snapshot(self._spark, self._table)
        of_run = (F.col("recomputation") == self._recomputation) & (F.col("events_snapshot") == pinned)
        staged = read_snapshot(self._spark, self._table, at).where(of_run)  # type: ignore[arg-type]  # it has rows
        if (staged_events := staged.count()) != rows:
            raise Conflict(
                f"{self._table} holds {staged_events:,} events of the archive's {rows:,}: another run wrote there",
                "run it again",
            )
        return staged.select(SEEN_SCHEMA.names)

    def _clear(self, recomputation: str | None = None) -> None:
        """Remove what is staged: of a recomputation, or of all."""
        if self._staged():
            _clear(self._spark, self._table, recomputation)
        _drop_tags(self._spark, self._archive, recomputation)

    def _staged(self) -> list[_Span]:
        self._spark.catalog.refreshTable(self._table)  # a session keeps tables as they were half a minute ago
        rows = self._spark.sql(f"SELECT partition.*, record_count FROM {self._table}.partitions").collect()
        return [_Span(*row) for row in rows]

    def _of_run(self, staged: list[_Span], pinned: int) -> list[_Span]:
        return [each for each in staged if (each.recomputation, each.events_snapshot) == (self._recomputation, pinned)]

    def _spans(self, pinned: int, size: int) -> list[Column]:
        """The condition of each span on the archive's rows; every row meets one of them."""
        first, last = (f"readable_metrics.kafka_timestamp.{bound}_bound" for bound in ("lower", "upper"))
        found = read_snapshot(self._spark, f"{self._archive}.files", pinned).select(
            *(F.coalesce(F.unix_micros(bound), F.lit(0)) for bound in (first, last)), "record_count"
        )
        first_F, last_F, rows_F = np.array(found.collect(), np.int64).T
        at = [F.timestamp_micros(F.lit(cut)) for cut in cuts(first_F, last_F, rows_F, size)]
        time = F.col("kafka_timestamp")
        if not at:
            return [F.lit(True)]
        between = [(time >= begin) & (time < end) for begin, end in pairwise(at)]
        return [time.isNull() | (time < at[0]), *between, time >= at[-1]]


def remove_abandoned(
    spark: SparkSession, engine: Engine, application: str, before: datetime, *, dry_run: bool = False
) -> int:
    """Remove what was staged before a time, and has not been taken up since; how many events."""
    table = f"lake.{application}.staged_predictions"
    spark.catalog.refreshTable(table)
    totals = F.max("last_updated_at").alias("at"), F.sum("record_count").alias("events")
    (left,) = spark.table(f"{table}.partitions").agg(*totals).collect()
    if left.at is None or left.at.astimezone() >= before:
        return 0
    if not dry_run:
        try:
            with mysql.named_lock(engine, f"deeplambda.{application}.recompute"):
                _clear(spark, table)
                _drop_tags(spark, f"lake.{application}.events")
        except Conflict:  # a recomputation has begun, which takes it up or removes it
            return 0
    return int(left.events)


def _clear(spark: SparkSession, table: str, recomputation: str | None = None) -> None:
    """Remove rows of a table, and their files: of a recomputation, or of all."""
    condition = f"recomputation = '{recomputation}'" if recomputation else "true"
    spark.sql(f"DELETE FROM {table} WHERE {condition}")
    name, at = table.removeprefix("lake."), f"TIMESTAMP '{now():%Y-%m-%d %H:%M:%S.%f}'"
    spark.sql(f"CALL lake.system.expire_snapshots(table => '{name}', older_than => {at}, retain_last => 1)")


def _drop_tags(spark: SparkSession, archive: str, recomputation: str | None = None) -> None:
    """Let go of the snapshots that staged rows were of."""
    names = [row.name for row in spark.sql(f"SELECT name FROM {archive}.refs").collect()]
    for name in names:
        if name == f"{_TAG}{recomputation}" or (recomputation is None and name.startswith(_TAG)):
            change_tag(spark, archive, f"DROP TAG IF EXISTS `{name}`")


def cuts(first_F: NDArray[np.int64], last_F: NDArray[np.int64], rows_F: NDArray[np.int64], size: int) -> list[int]:
    """Where to cut time so that about `size` rows, at most, are between two cuts.

    first_F, last_F: of F files, the times of their first and last rows, as integers. rows_F: how many rows they have,
    which are taken to have come evenly.
    """
    rate_F = rows_F / (last_F + 1 - first_F)
    times_2F, change_2F = np.concatenate([first_F, last_F + 1]), np.concatenate([rate_F, -rate_F])
    order = np.argsort(times_2F)
    times_2F, rate_2F = times_2F[order], np.cumsum(change_2F[order])
    rows_2F = np.concatenate([[0.0], np.cumsum(rate_2F[:-1] * np.diff(times_2F))])
    spans = math.ceil(rows_F.sum() / size)
    found = np.interp(rows_F.sum() * np.arange(1, spans) / spans, rows_2F, times_2F)
    return sorted({int(cut) for cut in found} - {int(first_F.min())})
