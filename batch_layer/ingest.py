"""Ingest: raw objects on S3 → checked rows in the master data set.

1. The sources' paths are looked up on S3. What was read by an earlier ingest is passed over where that changes nothing
   (`passed_over`).
2. Rows come of them in parallel: workers fetch the objects of raw sources and images, and check the recorded SHA-256
   (`whole_objects`); Spark's readers read all others, a part of a file in a task (`readers`).
3. Every row is checked against the event schema and given its split (`row_checks`).
4. Before anything is written, the whole is refused when an object is corrupt, when an event id or a declared group
   would be in two splits, or when a split would be empty (`refused_ingests`).
5. An Iceberg append adds, on a branch, the good rows that are not there yet, and those whose content is another than
   the newest of their event id: corrections (`newest`); but none that a person took back. There they are audited
   (`audit`), and the figures are kept.
6. If every hard expectation of the application holds, the branch's rows become the table's (`held_rows`). Otherwise
   they wait there for a person, and whoever reads the table finds what was there before.
7. Another append puts the refused rows in `quarantine` with the reason. A crash before it has all objects read again.
"""

import secrets
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import compress

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from batch_layer import held_rows, quality_rows, refusals
from batch_layer.audit import audit
from batch_layer.newest import SENT_TO_ALL, content_hash, newest_examples
from batch_layer.passed_over import keep_list, known_objects, may_hold_later
from batch_layer.quality import broken, share
from batch_layer.raw_objects import RawObjects, objects_of, raw_key
from batch_layer.readers import read_rows, unreadable_named
from batch_layer.refused_ingests import (
    divided_group,
    measures_of,
    refuse_divided_groups,
    refuse_empty,
    refuse_leaks,
    refused_of,
    verdicts_of,
)
from batch_layer.row_checks import DETAIL, LEFT_OUT, REASON, RECORD, ROW_NUMBER, checked_schema, reader_check
from batch_layer.whole_objects import (
    image_check,
    image_names,
    raw_source_check,
    read_together,
)
from deeplambda.adapters import mysql
from deeplambda.adapters.lake import SNAPSHOT_OPTION, create_tables, written_by
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_schema
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import Conflict, HeldBack
from deeplambda.loading import PackedApplication
from deeplambda.records.lifecycle import QualityMeasure, QualityMeasured
from deeplambda.sources import Images, Reader, Source, matched, split_names
from deeplambda.state import registry

_ORIGINAL = ["source", "source_sha256", "record"]
"""What tells quarantined rows apart from one run to the next; their numbers depend on how Spark divides a file."""
_QUARANTINED = {
    ROW_NUMBER: "row",
    REASON: "reason",
    DETAIL: "detail",
    RECORD: "record",
    "ingested_at": "quarantined_at",
}
"""What a refused row is kept with in `quarantine`, by its column here."""
_CONTENT, _NTH = "__content", "__nth"  # no field of an event is called so
_PLACE = ("source", ROW_NUMBER, _CONTENT)
"""What orders rows of one event id; content only where two sources read one object."""
_IS_ODD = "rows > 1 OR NOT is_new"


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What one run found in the objects that it read, and added; rows by split.

    objects: that were read. passed_over: objects that were not, for an earlier ingest has dealt with their rows.
    added: of new event ids. corrected: of ids that were there with other content. duplicates: rows whose event id a
    later row of the run has, by the object's name and the place in it. left_out: rows outside the intervals of
    `ByTime`. unlabelled: good rows without a label. quarantined: rows put there by this run. unexpected: what the audit
    found that breaks an expectation, in words.
    """

    objects: int
    passed_over: int
    duration_s: float = 0.0
    found: Mapping[str, int] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)
    quarantined: int = 0
    corrected: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    left_out: int = 0
    unlabelled: int = 0
    unexpected: Sequence[str] = ()


class _Undecided(Exception):
    """What an added object says depends on rows that were passed over: all objects are to be read.

    It corrects a row, and one that was passed over may come after it by name and hold that row too; or it has a row of
    a group whose rows in the other split may all have been corrected since.
    """


def ingest(spark: SparkSession, settings: Settings, packed: PackedApplication, *, whole: bool = False) -> Ingested:
    """Append what is new in the application's raw objects. A second run adds nothing.

    whole: whether to read all of them, not only those since the last time.
    Raises: HeldBack when the new rows break a hard expectation; BadInput when an object is missing, a column is not
    there, rows are in two splits or a split is empty; ConfigurationError; CorruptObject when an object is damaged;
    Conflict when another run is at it.
    """
    application, store, started = packed.load(), ObjectStore(settings), time.monotonic()
    split_names(application.sources, application.splits)  # before anything is read
    root = f"s3a://{settings.s3_bucket}/{raw_key(application.name, '')}"
    lock = mysql.named_lock(mysql.engine(settings, "platform"), f"deeplambda.{application.name}.ingest")
    with lock, unreadable_named(application.name, root):
        create_tables(spark, application)  # within the lock: what another run has added by now is seen
        objects = objects_of(application, store)
        known = frozenset() if whole else known_objects(spark, store, packed, objects)
        if not objects.tags.keys() - known:
            held_rows.drop_waiting(spark, application.name)  # its objects are gone
            return Ingested(objects=0, passed_over=len(known))
        try:
            ingested = _ingest(spark, settings, packed, root, objects, known)
        except _Undecided:
            ingested = _ingest(spark, settings, packed, root, objects, frozenset())
        keep_list(spark, store, packed, objects)
    return replace(ingested, duration_s=time.monotonic() - started)


def _ingest(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    root: str,
    objects: RawObjects,
    known: Set[str],
) -> Ingested:
    """Read the objects that are not known, and append what is new in them."""
    spark.sparkContext.addPyFile(str(packed.zip_file))
    read = objects.without(known)
    checked = _checked(spark, settings, packed, root, read.tags.keys(), known).persist(StorageLevel.DISK_ONLY)
    try:
        return _append(spark, settings, packed, checked, read, known)
    finally:
        checked.unpersist()


def _checked(
    spark: SparkSession, settings: Settings, packed: PackedApplication, root: str, read: Set[str], known: Set[str]
) -> DataFrame:
    """Every row of the objects that are read, good ones with REASON NULL."""
    application = packed.load()
    schema = from_arrow_schema(checked_schema(application))
    is_read = [any(matched(path, read) for path in source.paths) for source in application.sources]
    found = []
    if any(isinstance(source, Source) for source in compress(application.sources, is_read)):
        together = read_together(spark, application, read)
        found.append(together.mapInArrow(raw_source_check(settings, packed), schema))
    for number, source in enumerate(application.sources):
        if is_read[number] and isinstance(source, Images):
            images = image_names(spark, source, read)
            found.append(images.mapInArrow(image_check(settings, packed, number), schema))
        elif is_read[number] and isinstance(source, Reader):
            check = reader_check(settings, packed, number, root)
            rows = read_rows(spark, ObjectStore(settings), application, source, read, known, root)
            found += [each.mapInArrow(check, schema) for each in rows]
    if not found:  # of what is read, all is empty
        found.append(spark.createDataFrame([], schema))
    return reduce(DataFrame.unionAll, found).withColumns(
        {"code_version": F.lit(packed.code_version), "ingested_at": _moment(spark, application.name)}
    )


def _moment(spark: SparkSession, application: str) -> Column:
    """Of all rows of a run: now, or after the newest that there are, whatever the clocks say."""
    newest = spark.table(f"lake.{application}.examples").agg(F.max("ingested_at").alias("at"))
    at = newest.select(F.unix_micros("at").alias("us")).collect()[0].us
    return F.current_timestamp() if at is None else F.greatest(F.current_timestamp(), F.timestamp_micros(F.lit(at + 1)))


def _append(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    checked: DataFrame,
    read: RawObjects,
    known: Set[str],
) -> Ingested:
    """read: the objects; known: names of those that were passed over. Raises: _Undecided."""
    application = packed.load()
    examples, quarantine = f"lake.{application.name}.examples", f"lake.{application.name}.quarantine"
    verdicts, columns = verdicts_of(checked), spark.table(examples).columns
    fields = {*payload_schema(application.event).names, "label"}
    content = content_hash(column for column in spark.table(examples).schema if column.name in fields)
    good = checked.where(F.col(REASON).isNull()).withColumn(_CONTENT, content)
    if (taken_back := held_rows.taken_back(spark, application.name)) is not None:
        good = _without(good, taken_back.withColumn(_CONTENT, content))
    kept = spark.table(examples).withColumn(_CONTENT, content)
    if sum(row["rows"] for row in verdicts if row["reason"] is None) <= SENT_TO_ALL:
        kept = kept.join(F.broadcast(good.select("event_id")), "event_id", "left_semi")
    ids = _ids(good, kept).persist(StorageLevel.DISK_ONLY)
    unexpected, held = list[str](), None
    try:
        counts = ids.groupBy("split").agg(
            F.count("*").alias("found"),
            F.count_if("is_new").alias("added"),
            F.count_if("is_correction").alias("corrected"),
            F.min(F.when(F.col("is_correction"), F.col("last.source"))).alias("corrected_from"),
            F.sum("rows").alias("rows"),
            F.count_if(F.expr(_IS_ODD)).alias("odd"),
            F.min(F.when(F.col("split") != F.col("last_split"), F.struct("event_id", "last_split"))).alias("leak"),
            F.min(F.when(F.col("split") != F.col("kept.split"), F.struct("event_id", "kept.split"))).alias("moved"),
        )
        by_split = {row["split"]: row for row in counts.collect()}
        corrected_from = {split: row["corrected_from"] for split, row in by_split.items() if row["corrected"]}
        if any(may_hold_later(application, known, split, name) for split, name in corrected_from.items()):
            raise _Undecided
        newest = newest_examples(spark, application.name)
        refuse_leaks(application, list(by_split.values()))
        if not known:
            refuse_divided_groups(application, good, newest)
        elif divided_group(application, good, spark.table(examples)) is not None:
            raise _Undecided
        refuse_empty(application, verdicts, newest)
        found, added, corrected, rows, odd = (
            sum(row[what] for row in by_split.values()) for what in ("found", "added", "corrected", "rows", "odd")
        )
        if changed := added + corrected:
            facts = _facts(good, ids, changed, odd).select(columns)
            of_run = [
                *measures_of(verdicts),
                share("duplicates", rows - found, rows),
                share("conflicting_ids", corrected, changed),
            ]
            unexpected, held = _publish_audited(spark, settings, packed, facts, newest, of_run, read)
        else:
            held_rows.drop_waiting(spark, application.name)
        quarantined = _quarantine(spark, quarantine, checked) if refused_of(verdicts) else 0
        if held is not None:
            raise held
    finally:
        ids.unpersist()
    return Ingested(
        objects=len(read.tags),
        passed_over=len(known),
        found={split: row["found"] for split, row in by_split.items()},
        added={split: row["added"] for split, row in by_split.items() if row["added"]},
        quarantined=quarantined,
        corrected={split: row["corrected"] for split, row in by_split.items() if row["corrected"]},
        duplicates=rows - found,
        left_out=sum(row["rows"] for row in verdicts if row["reason"] == LEFT_OUT),
        unlabelled=sum(row["rows"] - row["labelled"] for row in verdicts if row["reason"] is None),
        unexpected=unexpected,
    )


def _publish_audited(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    facts: DataFrame,
    newest: DataFrame,
    of_run: list[QualityMeasure],
    objects: RawObjects,
) -> tuple[list[str], HeldBack | None]:
    """Write, audit, publish; the expectations that do not hold, in words, and what to raise where one is hard."""
    name, application = packed.name, packed.load()
    ingest_name = f"{now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    branch = held_rows.new_branch(spark, name, ingest_name)
    writer = facts.writeTo(held_rows.to_branch(name, branch)).option(SNAPSHOT_OPTION, branch)
    # Each task writes its rows, a file for each split: dealt out by split, one task would write a whole split.
    writer.option("distribution-mode", "none").option("fanout-enabled", "true").append()
    written = written_by(spark, f"lake.{name}.examples", branch)
    assert written is not None, "there are new rows"
    with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
        champion = registry.champion(connection, name)
    added = held_rows.added(spark, name, written)
    measures = of_run + audit(spark, settings, packed, added, newest, champion, objects)
    found = broken(application.expectations, measures)
    hard = [reason for expected, reason in found if expected.hard]
    unexpected = [reason for _, reason in found]
    measured = QualityMeasured(
        application=name,
        subject="ingest",
        day=now().date(),
        ingest=ingest_name,
        snapshot=written.snapshot,
        measures=measures,
        broken=unexpected,
        branch=branch if hard else None,
    )
    quality_rows.keep(spark, settings, measured)
    if hard:
        return unexpected, HeldBack(
            f"new rows of {name} are held back on the branch {branch}: {'; '.join(hard)}",
            "readers and training stay with the rows before; see the new ones: deeplambda sql "
            f'"SELECT * FROM lake.{name}.examples VERSION AS OF {written.snapshot}"; then publish or drop them: '
            f"'deeplambda data publish {name} {branch} --why …', or correct the files and ingest again",
        )
    if held_rows.current(spark, name) not in (None, written.parent):
        raise Conflict(f"the examples of {name} have changed since this ingest began", "run it again")
    held_rows.publish(spark, name, branch, written.snapshot)
    return unexpected, None


def _ids(good: DataFrame, examples: DataFrame) -> DataFrame:
    """Each event id once: its split, the last split it is in, its rows, and the newest that the lake has of it."""
    kept = examples.groupBy("event_id").agg(F.max(F.struct("ingested_at", _CONTENT, "split")).alias("kept"))
    return (
        good.groupBy("event_id")
        .agg(
            F.min("split").alias("split"),
            F.max("split").alias("last_split"),
            F.count("*").alias("rows"),
            F.max(F.struct(*_PLACE)).alias("last"),
        )
        .join(kept, "event_id", "left")
        .withColumn("is_new", F.col("kept").isNull())
        .withColumn("is_correction", F.col(f"kept.{_CONTENT}") != F.col(f"last.{_CONTENT}"))
    )


def _without(good: DataFrame, taken_back: DataFrame) -> DataFrame:
    """The rows but those that a person took back, and earlier rows of their ids by the same reading of an object.

    An object that grew was read in several states, and taken back in all of them; once its bytes are others, all of
    its rows are welcome.
    """
    states = taken_back.select("source", "source_sha256").distinct()
    gone = taken_back.select("event_id", "source", _CONTENT, "code_version").join(states, "source")
    same = [good[name] == gone[name] for name in ("event_id", "source", "source_sha256")]
    read_alike = (good[_CONTENT] == gone[_CONTENT]) | (good["code_version"] == gone["code_version"])
    return good.join(gone, [*same, read_alike], "left_anti")


def _facts(good: DataFrame, ids: DataFrame, changed: int, odd: int) -> DataFrame:
    """The last row of each event id that is new or corrected. Rows go between executors where both numbers are large.

    changed: of these ids. odd: of ids that have several rows or are there already.
    """
    facts = good.withColumn("corrects", F.lit(None).cast("timestamp"))
    if not odd:
        return facts
    wanted = ids.where("is_new OR is_correction").select("event_id", F.col("kept.ingested_at").alias("corrects"))
    if changed <= SENT_TO_ALL:
        return _last_rows(good, F.broadcast(wanted))
    if odd > SENT_TO_ALL:
        return _last_rows(good, wanted)
    of_odd = F.broadcast(ids.where(_IS_ODD).select("event_id"))
    rest = facts.join(of_odd, "event_id", "left_anti")
    return rest.unionByName(_last_rows(good, F.broadcast(wanted.join(of_odd, "event_id", "left_semi"))))


def _last_rows(good: DataFrame, ids: DataFrame) -> DataFrame:
    """The last row of each of these ids."""
    last = Window.partitionBy("event_id").orderBy(*(F.desc(name) for name in _PLACE))
    rows = good.join(ids, "event_id").withColumn(_NTH, F.row_number().over(last))
    return rows.where(f"{_NTH} = 1").drop(_NTH)


def _quarantine(spark: SparkSession, quarantine: str, checked: DataFrame) -> int:
    columns = spark.table(quarantine).columns
    refused = (
        checked.where(F.col(REASON) != LEFT_OUT)
        .select("source", "source_sha256", *(F.col(mine).alias(name) for mine, name in _QUARANTINED.items()))
        .join(spark.table(quarantine).select(_ORIGINAL).distinct(), _ORIGINAL, "left_anti")
        .select(columns)
        .persist(StorageLevel.DISK_ONLY)
    )
    try:
        quarantined: int = refused.count()
        if quarantined:
            refusals.append(refused, quarantine, quarantined)
        return quarantined
    finally:
        refused.unpersist()
