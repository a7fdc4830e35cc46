"""Upkeep: what nobody needs any more goes, and many small files become few, beside everything else that is at work.

1. Of each Iceberg table of an application, small data files and manifests are written together. Snapshots older than
   KEPT_SNAPSHOTS go, but for those that are pinned: by a model's card, by the horizon, by anybody's tag, as the last of
   one of the last days, or as the one that was the newest when the others grew old. A tag of ours holds what is pinned.
2. Files below a table that no snapshot knows go, once they are old enough not to be a write in progress; so does what a
   recomputation staged that was broken off and that nobody took up.
3. On S3, checkpoints of published runs go, and those of runs that nobody took up again; so do data sets that neither
   the champion nor a version of the last days was trained on, and tunings and uploads that nobody took up again.
4. In MySQL, records of the outbox go that Kafka has had for long, marks of replays whose dead letters are gone, queries
   of the day before, and answers of experiments that ended long ago.
Before all that, `verdicts` gets the decisions about versions that commands have made since.
"""

import logging
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pyspark.sql import SparkSession
from sqlalchemy import ColumnElement, Connection, Engine, func, select
from sqlalchemy import Table as MySqlTable

from batch_layer import skew
from batch_layer.event_quality import measure_events
from batch_layer.lake_rows import append_verdicts
from batch_layer.staged_predictions import remove_abandoned
from deeplambda.adapters import mysql
from deeplambda.adapters.lake import TABLES, change_tag
from deeplambda.adapters.s3 import ObjectStore, StoredObject
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.loading import pack_application
from deeplambda.service.loops import LoopStatus, in_one_line
from deeplambda.state import registry
from deeplambda.state.horizon_store import read_batch_view, shown_snapshots
from deeplambda.state.tables import EXPERIMENT_ANSWERS, EXPERIMENTS, OUTBOX, QUERIES, REPLAYED_LETTERS

KEPT_SNAPSHOTS = timedelta(hours=1)
"""How long a snapshot stays that nothing pins. Who reads one for longer holds a tag on it meanwhile: `lake.held`."""
RETAINED = 100
"""The newest snapshots stay in any case: by them a stream that starts again sees what it has committed."""
ORPHANS_AFTER = timedelta(days=3)
FINISHED_AFTER = timedelta(days=1)
"""How long a published run's checkpoints stay, so that a loop that was broken off goes on from them."""
REPLAYED_KEPT = timedelta(days=30)
"""As long as Kafka keeps dead letters, by which a record is sent again."""
QUERIES_KEPT = timedelta(days=1)
FIRST_AFTER_S = 300
"""After a start, tidying waits no longer than this: a process that never runs for an hour would else never tidy."""
SMALL_FILES = 20
"""From so many on, small files are worth writing together."""
SMALL_BYTES = 16 * 2**20
"""A file of so many is written no more. Each version keeps its snapshots, so what is written again is there once more
for each version of before: of `labels`, which has no partitions, at most so much. Few versions a year may do with a
larger one, and files that are read sooner."""

_log = logging.getLogger(__name__)
_TAG = "deeplambda-{}"
_OURS = re.compile(r"deeplambda-(\d+)")
_OFTEN_COMMITTED = ("events", "labels")
_COMPACTED = ("events", "labels", "quarantine", "models", "model_metrics", "verdicts", "data_quality", "withdrawals")
"""Not `examples`, whose snapshot tells one data set from another, nor `predictions`: a recomputation goes on from the
snapshot that the horizon shows, and writes its files together itself."""


@dataclass
class Freed:
    """What went, or would go: by what it was, how many and of how many bytes."""

    objects: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, what: str, objects: int, size_bytes: int = 0) -> None:
        """Count some more."""
        if objects:
            self.objects[what] += objects
            self.bytes[what] += size_bytes


def maintain(
    spark: SparkSession,
    settings: Settings,
    application: str,
    *,
    dry_run: bool = False,
    orphans: bool = True,
    kept_snapshots: timedelta = KEPT_SNAPSHOTS,
) -> Freed:
    """Keep one application's stores small; what went. A second call finds nothing to do.

    dry_run: only say what would go. orphans: whether to look for files that no snapshot knows, which lists every file.
    kept_snapshots: how long a snapshot stays that nothing pins. Raises: Conflict when another run is at it, NotReady.
    """
    freed, engine, store = Freed(), mysql.engine(settings, "platform"), ObjectStore(settings)
    days = timedelta(days=settings.kept_days)
    with mysql.named_lock(engine, f"deeplambda.{application}.maintain"):
        known = spark.sql(f"SHOW NAMESPACES IN lake LIKE '{application}'").collect()
        tables = spark.sql(f"SHOW TABLES IN lake.{application}").collect() if known else []
        there = {row.tableName for row in tables}
        if "verdicts" in there and not dry_run:
            append_verdicts(spark, engine, application)
        for name in (each for each in TABLES if each in there):
            table = Table(spark, application, name)
            kept = kept_snapshots if name in _OFTEN_COMMITTED else max(days, kept_snapshots)
            _maintain_table(table, engine, application, days, kept, freed, dry_run=dry_run)
            if orphans:
                freed.add("orphan files", table.remove_orphans(dry_run=dry_run))
        if "staged_predictions" in there:
            abandoned = remove_abandoned(spark, engine, application, now() - days, dry_run=dry_run)
            freed.add("staged predictions", abandoned)
        with mysql.mysql_errors(), engine.connect() as connection:
            kept_datasets, published_runs = _of_versions(connection, application, now() - days)
        stale = list(_stale(store, application, kept_datasets, published_runs, now() - days))
        for what, found in stale:
            freed.add(what, 1, found.bytes)
        if not dry_run:
            store.delete(found.key for _, found in stale)
        for upload in store.unfinished(f"{application}/"):
            if upload.modified < now() - days:
                freed.add("unfinished uploads", 1, upload.bytes)
                if not dry_run:
                    store.abort(upload)
        for what, rows, old in _old_rows(application, days):
            freed.add(what, _count(engine, old) if dry_run else mysql.delete_in_chunks(engine, rows, old))
    return freed


def keep_up(spark: SparkSession, settings: Settings, status: LoopStatus, stop: threading.Event) -> None:
    """Maintain every application, every now and then, until told to stop. Once a day, look for files that no snapshot
    knows and for skew, and measure the days of events that have ended."""
    daily_at, pause_s = now(), min(settings.maintain_every_s, FIRST_AFTER_S)
    while not stop.wait(pause_s):
        pause_s = settings.maintain_every_s
        failure = ""
        for application in settings.applications:
            try:
                freed = maintain(spark, settings, application, orphans=now() >= daily_at)
                if now() >= daily_at:
                    skew.measure(spark, settings, application)
                    measure_events(spark, settings, pack_application(application, settings))
                _log.info("upkeep of %s: %s", application, dict(freed.objects) or "nothing to tidy")
            except Exception as exc:  # whatever it is, the other applications have their turn
                failure = in_one_line(exc)
        if now() >= daily_at:
            daily_at = now() + timedelta(days=1)
        if failure:
            status.waiting(failure)
        else:
            status.working()


class Table:
    """One Iceberg table, and the procedures that keep it small."""

    def __init__(self, spark: SparkSession, application: str, name: str) -> None:
        self.name, self._spark, self._table = name, spark, f"{application}.{name}"

    def snapshots(self) -> list[tuple[int, datetime]]:
        """(id, when it was committed), the oldest first, of those that the table still has."""
        rows = self._spark.sql(f"SELECT snapshot_id, committed_at FROM lake.{self._table}.snapshots ORDER BY 2")
        return [(row.snapshot_id, row.committed_at.astimezone()) for row in rows.collect()]

    def named(self) -> dict[str, int]:
        """The snapshots by tag or branch."""
        rows = self._spark.sql(f"SELECT name, snapshot_id FROM lake.{self._table}.refs").collect()
        return {row.name: row.snapshot_id for row in rows}

    def pin(self, wanted: set[int]) -> None:
        """Have tags of ours on these snapshots and on no others."""
        table = f"lake.{self._table}"
        tagged = {int(found[1]): name for name in self.named() if (found := _OURS.fullmatch(name))}
        for snapshot in sorted(wanted - tagged.keys()):
            change_tag(self._spark, table, f"CREATE OR REPLACE TAG `{_TAG.format(snapshot)}` AS OF VERSION {snapshot}")
        for snapshot in sorted(tagged.keys() - wanted):
            change_tag(self._spark, table, f"DROP TAG IF EXISTS `{tagged[snapshot]}`")

    def small_files(self) -> tuple[int, int]:
        """How many files a compaction would write together, and of how many bytes."""
        size = "file_size_in_bytes"
        (row,) = self._spark.sql(
            f"SELECT count(*), coalesce(sum({size}), 0) FROM lake.{self._table}.files WHERE {size} < {SMALL_BYTES}"
        ).collect()
        return row[0], row[1]

    def compact(self) -> tuple[int, int]:
        """Write small data files together, then manifests; how many data files were replaced, of how many bytes."""
        options = {"partial-progress.enabled": "true", "min-input-files": "5", "min-file-size-bytes": str(SMALL_BYTES)}
        pairs = ", ".join(f"'{name}', '{value}'" for name, value in options.items())
        done = self._call("rewrite_data_files", f"options => map({pairs})")
        self._call("rewrite_manifests")
        return done["rewritten_data_files_count"], done["rewritten_bytes_count"]

    def expire(self, before: datetime) -> int:
        """Drop the snapshots from before that no tag holds; how many files went with them."""
        done = self._call("expire_snapshots", f"older_than => {_sql(before)}, retain_last => {RETAINED}")
        return sum(int(value or 0) for value in done.values())

    def remove_orphans(self, *, dry_run: bool) -> int:
        """Delete files that no snapshot knows; how many."""
        before = _sql(now() - ORPHANS_AFTER)
        call = f"CALL lake.system.remove_orphan_files('{self._table}', older_than => {before}, dry_run => {dry_run})"
        return len(self._spark.sql(call).collect())

    def _call(self, procedure: str, *arguments: str) -> dict[str, int]:
        table = f"table => '{self._table}'"
        (row,) = self._spark.sql(f"CALL lake.system.{procedure}({', '.join((table, *arguments))})").collect()
        counts: dict[str, int] = row.asDict()
        return counts


def _sql(moment: datetime) -> str:
    return f"TIMESTAMP '{moment:%Y-%m-%d %H:%M:%S.%f}'"


def _pinned_by_state(connection: Connection, application: str, table: str) -> set[int]:
    """The table's snapshots that a card or a horizon names: the newest, or one that a gateway still shows."""
    cards, visible = registry.cards(connection, application), read_batch_view(connection, application)
    named: dict[str, set[int | None]] = {
        "examples": {card.snapshot for card in cards},
        "events": {visible.events_snapshot, *(card.events_snapshot for card in cards)},
        "labels": {card.labels_snapshot for card in cards},
        "withdrawals": {card.withdrawals_snapshot for card in cards},
        "predictions": {visible.horizon.snapshot, *shown_snapshots(connection, application)},
    }
    return {snapshot for snapshot in named.get(table, ()) if snapshot is not None}


def _maintain_table(
    table: Table, engine: Engine, application: str, days: timedelta, kept: timedelta, freed: Freed, *, dry_run: bool
) -> None:
    if table.name in _COMPACTED and (small := table.small_files())[0] >= SMALL_FILES:
        freed.add("small files", *(small if dry_run else table.compact()))
    with mysql.mysql_errors(), engine.connect() as connection:  # now, for compaction may have taken long
        pinned = _pinned_by_state(connection, application, table.name)
    cutoff, snapshots = now() - kept, table.snapshots()
    there = {snapshot for snapshot, _ in snapshots}
    wanted = (pinned & there) | kept_by_age(snapshots, cutoff, now() - days)
    held = wanted | set(table.named().values()) | {snapshot for snapshot, _ in snapshots[-RETAINED:]}
    expired = [snapshot for snapshot, at in snapshots if at < cutoff and snapshot not in held]
    freed.add("snapshots", len(expired))
    if expired and not dry_run:
        table.pin(wanted)
        with mysql.mysql_errors(), engine.connect() as connection:
            named_since = _pinned_by_state(connection, application, table.name) & there
        table.pin(wanted | named_since)  # of who held a snapshot above, named it and let it go
        freed.add("files of snapshots", table.expire(cutoff))


def kept_by_age(snapshots: Iterable[tuple[int, datetime]], cutoff: datetime, since: datetime) -> set[int]:
    """Of (id, committed at) in their order: the last one of each day after `since`, and the newest one at `cutoff`.

    Whoever began to read at `cutoff` or later found that one, or a younger one.
    """
    last_of_day = {at.date(): (snapshot, at) for snapshot, at in snapshots}
    newest_then = [snapshot for snapshot, at in snapshots if at < cutoff][-1:]
    return {snapshot for snapshot, at in last_of_day.values() if at >= since} | set(newest_then)


def _of_versions(connection: Connection, application: str, since: datetime) -> tuple[set[str], set[str]]:
    """The data sets that are still of use, and the runs that have become a version."""
    cards, champion = registry.cards(connection, application), registry.champion(connection, application)
    datasets = {card.dataset for card in cards if card.created_at >= since}
    return datasets | ({champion.dataset} if champion else set()), {card.run for card in cards}


def _stale(
    store: ObjectStore, application: str, datasets: set[str], published: set[str], before: datetime
) -> Iterator[tuple[str, StoredObject]]:
    for run, objects in _by_folder(store, f"{application}/runs/").items():
        if _untouched(objects, now() - FINISHED_AFTER if run in published else before):
            yield from (("checkpoints", found) for found in objects)
    for dataset, objects in _by_folder(store, f"{application}/prepared/").items():
        if dataset not in datasets and _untouched(objects, before):
            yield from (("prepared data", found) for found in objects)
    for objects in _by_folder(store, f"{application}/tuning/").values():
        if _untouched(objects, before):
            yield from (("tunings", found) for found in objects)


def _by_folder(store: ObjectStore, prefix: str) -> dict[str, list[StoredObject]]:
    found: dict[str, list[StoredObject]] = defaultdict(list)
    for each in store.list(prefix):
        found[each.key.removeprefix(prefix).partition("/")[0]].append(each)
    return found


def _untouched(objects: Iterable[StoredObject], before: datetime) -> bool:
    return all(each.modified < before for each in objects)


def _old_rows(application: str, days: timedelta) -> Iterator[tuple[str, MySqlTable, ColumnElement[bool]]]:
    """What goes in MySQL: what it is, its table, and which rows. All but the answers are of every application."""
    yield "outbox records", OUTBOX, OUTBOX.c.published_at < mysql.ago(days)
    yield "marks of replays", REPLAYED_LETTERS, REPLAYED_LETTERS.c.at < mysql.ago(REPLAYED_KEPT)
    yield "queries", QUERIES, QUERIES.c.submitted_at < mysql.ago(QUERIES_KEPT)
    answers, experiments = EXPERIMENT_ANSWERS.c, EXPERIMENTS.c
    ended = select(experiments.number).where(
        experiments.application == application, experiments.ended_at < mysql.ago(days)
    )
    old = (answers.application == application) & answers.experiment.in_(ended)
    yield "answers of experiments", EXPERIMENT_ANSWERS, old


def _count(engine: Engine, rows: ColumnElement[bool]) -> int:
    with mysql.mysql_errors(), engine.connect() as connection:
        return connection.scalar(select(func.count()).where(rows)) or 0
