"""What a recomputation refuses: kept once in `lake.<application>.quarantine`, and weighed before the view is published.

An event is dropped when it has a prediction now, in the batch view or the real-time view, and would have none in the
new batch view. A few are the price of a stricter schema or a better model; many are a bug in the champion's code. Or
the archive lacks it: it had expired before the archive came to it, or somebody has deleted it there.
"""

import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from sqlalchemy import Engine, func, select, text

from deeplambda.adapters import mysql
from deeplambda.errors import TooManyRefused
from deeplambda.records import topics
from deeplambda.records.horizon import Horizon
from deeplambda.state.tables import REALTIME_PREDICTIONS

if TYPE_CHECKING:  # Spark takes long to import, which a help text need not wait for
    from pyspark.sql import DataFrame, SparkSession

ACCEPTED_SHARE = 0.01
"""How large a share of the events that have a prediction may lose it, unless the caller says otherwise."""

_ROWS_OF_A_FILE = 100_000  # one task would write the terabyte of a column that went wrong
_ASKED_AT_ONCE = 1_000


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """How many would lose their prediction, of the events that are `predicted` now. refused: by code or model. missing:
    because the archive lacks them. predicted is only counted when there are any of them."""

    refused: int = 0
    missing: int = 0
    predicted: int = 0

    @property
    def share(self) -> float:
        return (self.refused + self.missing) / self.predicted if self.predicted else 0.0


def keep(spark: "SparkSession", application: str, refused: "DataFrame", count: int) -> None:
    """Append those of `count` events that are not in the quarantine yet: an event is known by its position."""
    from pyspark.sql import functions as F

    quarantine = f"lake.{application}.quarantine"
    position = [F.lit(topics.events(application)), F.col("kafka_partition"), F.col("kafka_offset")]
    rows = refused.select(
        F.concat_ws("/", *position).alias("source"),
        F.sha2(F.coalesce(F.col("record"), F.lit(b"")), 256).alias("source_sha256"),
        F.col("kafka_offset").alias("row"),
        "reason",
        "detail",
        "record",
        F.current_timestamp().alias("quarantined_at"),
    )
    there = spark.table(quarantine).select("source")
    new = rows.join(there, "source", "left_anti").select(spark.table(quarantine).columns)
    append(new, quarantine, count)


def append(refused: "DataFrame", quarantine: str, count: int) -> None:
    """Append rows to a quarantine, about `count` of them: to one file where they are few."""
    files = math.ceil(count / _ROWS_OF_A_FILE)
    refused.repartition(files).writeTo(quarantine).append()  # coalesce would have so few tasks look for them, too


def dropped(
    spark: "SparkSession",
    engine: Engine,
    application: str,
    now: Horizon,
    reaches: Horizon,
    archived: "DataFrame",
    scored: "DataFrame",
    refused: "DataFrame",
    *,
    batch_view_stays: bool,
) -> Dropped:
    """How many events before the horizon `reaches` would lose the prediction that they have.

    now: the horizon of the view that would be replaced. archived: all events that the archive has between both, or more
    of them. batch_view_stays: whether the view's rows are in the new one, so that only those of the real-time view are
    weighed. Whoever withdraws an event means it to have none. Raises: NotReady.
    """
    from pyspark.sql import functions as F

    from batch_layer.counted_events import POSITION, counted
    from batch_layer.gaps import unarchived
    from deeplambda.adapters.lake import read_snapshot

    live = REALTIME_PREDICTIONS.c
    between = live.application == application, text(now.past_mysql()), text(f"NOT ({reaches.past_mysql()})")
    view = spark.createDataFrame([], "event_id STRING")
    if now.snapshot is not None:
        view = read_snapshot(spark, f"lake.{application}.predictions", now.snapshot).select("event_id", *POSITION)
        view = counted(spark, application, "events", view).select("event_id")
    kept = scored.select("event_id")
    gone = refused.where("event_id IS NOT NULL").select("event_id").distinct().join(kept, "event_id", "left_anti")
    lost, missing = 0, 0
    if not batch_view_stays:
        of_view = view.join(kept, "event_id", "left_anti").join(
            gone.withColumn("is_refused", F.lit(True)), "event_id", "left"
        )
        (counts,) = of_view.agg(F.count("is_refused").alias("refused"), F.count("*").alias("all")).collect()
        lost, missing = counts["refused"], counts["all"] - counts["refused"]
    if not gone.isEmpty():
        ids = (row.event_id for row in gone.join(view, "event_id", "left_anti").toLocalIterator())
        with mysql.mysql_errors(), engine.connect() as connection:
            while some := list(islice(ids, _ASKED_AT_ONCE)):
                lost += connection.scalar(select(func.count()).where(*between, live.event_id.in_(some))) or 0
    for unknown in unarchived(engine, application, archived, now, reaches):
        of_stream = spark.createDataFrame([(event_id,) for event_id in unknown], "event_id STRING")
        for known in (kept, gone, view):  # of an event's copies the archive may have another one
            of_stream = of_stream.join(known, "event_id", "left_anti")
        missing += of_stream.count()
    if not lost and not missing:
        return Dropped()
    with mysql.mysql_errors(), engine.connect() as connection:
        predicted = connection.scalar(select(func.count()).where(*between)) or 0
    return Dropped(refused=lost, missing=missing, predicted=predicted + (0 if batch_view_stays else view.count()))


def check_share(application: str, version: int, lost: Dropped, accepted_share: float) -> None:
    """Raises: TooManyRefused when more than `accepted_share` would lose their prediction."""
    if lost.share <= accepted_share:
        return
    what, remedies = [], []
    if lost.refused:
        what.append(f"{application}/{version} refuses {lost.refused:,}")
        remedies.append(
            f'see why: deeplambda sql "SELECT reason, detail, source FROM lake.{application}.quarantine '
            'ORDER BY quarantined_at DESC LIMIT 20"; then roll back or promote another version'
        )
    if lost.missing:
        what.append(f"lake.{application}.events lacks {lost.missing:,}")
        remedies.append("send those that the archive lacks again (the table 'skipped_records' names offsets given up)")
    raise TooManyRefused(
        f"{' and '.join(what)} of {lost.predicted:,} events that have a prediction ({lost.share:.1%}, "
        f"{accepted_share:.1%} accepted), so the batch view stays as it is",
        f"{'; '.join(remedies)}, or accept the loss: "
        f"'deeplambda batch recompute {application} --accept-refused {_rounded_up(lost.share)}'",
    )


def _rounded_up(share: float) -> str:
    return f"{min(1.0, share + 0.01):.2f}"
