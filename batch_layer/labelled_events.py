"""Labelled events: what the archive knows the truth of, as rows to learn from and to be judged by.

1. Every archived label is checked. Of those of an event that pass, the newest counts, by the broker's time.
2. It is joined with its event. What is an example too, by its event id, is left to the examples.
3. The newest events, by the broker's time, are the split `recent`.
4. An event's bytes go through the stream's checks, and become a row like an example's. What is not `recent` gets the
   split that the application's rule says; where the rule has no word on events, train.
5. A row is left out whose payload the examples have in other splits, or whose payload or group is held out.
Steps 1 to 3 read ids and labels alone, and say whether there is anything new; 4 and 5 are done once for a data set.
What was not known at the moment `as_of` counts the next time.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC
from enum import StrEnum
from functools import lru_cache, partial

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from batch_layer.counted_events import NONE_WITHDRAWN, counted_events, counted_labels, withdrawals_snapshot
from batch_layer.newest import content_hash, newest_examples
from batch_layer.refused_ingests import group_column
from batch_layer.row_checks import REASON
from deeplambda.adapters.lake import current_snapshot, read_snapshot
from deeplambda.application import Application, Event, payload_schema
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.fields import is_decimal
from deeplambda.loading import PackedApplication
from deeplambda.objective import label_text
from deeplambda.records.admission import check
from deeplambda.splits import RECENT, TRAIN

RECENT_SHARE = 0.2
"""Of the labelled events, the newest, which are held out."""
RECENT_LIMIT = 10_000
"""And at most so many: an accuracy is known to ±1 point from them, and all others are to be learned from."""

_POSITION = ("kafka_timestamp", "kafka_partition", "kafka_offset")
_POSITION_TYPES = ("timestamp", "int", "bigint")
_CONTENT, _GROUP, _SPLIT, _PLACE = "__content", "__group", "__split", "__place"  # no field begins so


class LabelRefusal(StrEnum):
    """Why a label counts for nothing."""

    MISSING = "missing_label"
    WRONG = "wrong_label"
    FUTURE = "from_the_future"
    UNKNOWN_EVENT = "unknown_event"
    EXAMPLE = "of_an_example"
    SUPERSEDED = "superseded"


class EventRefusal(StrEnum):
    """Why a labelled event is left out, beside the reasons of `deeplambda.records.decoding`."""

    NO_SPLIT = "no_split"
    PAYLOAD_HELD_OUT = "payload_in_another_split"
    GROUP_HELD_OUT = "group_in_another_split"


_OF_THE_LABEL = (LabelRefusal.MISSING, LabelRefusal.WRONG, LabelRefusal.FUTURE)


Position = tuple[AwareDatetime, int, int]
"""Where an event stands in the archive: the broker's time, partition, offset."""


class LabelledEvents(BaseModel):
    """The labelled events of two snapshots, as they were known at `as_of`.

    withdrawals_snapshot: what says which records count; None where an earlier release did not pin it. events: how many.
    sent_again: further copies of them. recent: how many are held out, from `recent_from` on. refused: labels by reason.
    fingerprint: equal for equal events, labels and splits.
    """

    model_config = ConfigDict(frozen=True)

    events_snapshot: int
    labels_snapshot: int
    withdrawals_snapshot: int | None = None
    as_of: AwareDatetime
    events: int = 0
    sent_again: int = 0
    recent: int = 0
    recent_from: Position | None = None
    refused: dict[str, int] = {}
    fingerprint: str = ""


def find(spark: SparkSession, packed: PackedApplication, examples: int) -> LabelledEvents | None:
    """The newest labelled events; None while the archive has no label or no event. examples: the snapshot of those."""
    tables = (f"lake.{packed.name}.events", f"lake.{packed.name}.labels")
    if not all(spark.catalog.tableExists(table) for table in tables):
        return None
    events_snapshot, labels_snapshot = (current_snapshot(spark, table) for table in tables)
    if events_snapshot is None or labels_snapshot is None:
        return None
    pinned = LabelledEvents(
        events_snapshot=events_snapshot,
        labels_snapshot=labels_snapshot,
        withdrawals_snapshot=withdrawals_snapshot(spark, packed.name) or NONE_WITHDRAWN,
        as_of=now(),
    )
    known = known_labels(spark, packed, pinned, examples).persist(StorageLevel.DISK_ONLY)
    try:
        return _counted(known, pinned, _held_out_before(spark, packed.name))
    finally:
        known.unpersist()


def _counted(known: DataFrame, pinned: LabelledEvents, since: list[Position]) -> LabelledEvents:
    taken = _is_taken()
    (counts,) = known.agg(
        F.count_if(taken).alias("events"),
        F.sum(F.when(taken, F.col("copies") - 1)).alias("sent_again"),
        *_refused(taken),
    ).collect()
    refused = {str(reason): counts[reason] for reason in LabelRefusal if counts[reason]}
    found = pinned.model_copy(update={"events": counts["events"], "refused": refused})
    if not found.events:
        return found
    labelled, wanted = known.where(taken), min(math.ceil(found.events * RECENT_SHARE), RECENT_LIMIT)
    newest = labelled.select("position").orderBy(F.desc("position")).limit(wanted)
    (first,) = newest.agg(F.min("position").alias("position")).collect()
    recent_from = max([_read(first["position"]), *since])
    recent, of_rows = F.count_if(_is_past(recent_from)), F.bit_xor(F.xxhash64("event_id", "position", "label"))
    (row,) = labelled.agg(recent.alias("recent"), of_rows.alias("of_rows")).collect()
    return found.model_copy(
        update={
            "sent_again": counts["sent_again"],
            "recent": row["recent"],
            "recent_from": recent_from,
            "fingerprint": f"{found.events}-{row['recent']}-{row['of_rows']:x}",
        }
    )


def _read(position: Row) -> Position:
    return position["kafka_timestamp"].astimezone(UTC), position["kafka_partition"], position["kafka_offset"]


def _held_out_before(spark: SparkSession, application: str) -> list[Position]:
    """Where the split `recent` of each published version began: no later data set's begins before, for what one version
    has learned from is no test for it when it has become the champion."""
    told = F.get_json_object("card", "$.recent_from").alias("recent_from")
    rows = spark.table(f"lake.{application}.models").select(told).where("recent_from IS NOT NULL").collect()
    found = [TypeAdapter(Position | None).validate_json(row["recent_from"]) for row in rows]
    return [position for position in found if position is not None]


def refused_labels(known: DataFrame) -> tuple[int, dict[str, int]]:
    """How many labels there are, and how many count for nothing by reason. known: as `known_labels` gives it."""
    labels = F.sum(F.expr(" + ".join(["labels", *_OF_THE_LABEL]))).alias("all")
    (counts,) = known.agg(labels, *_refused(_is_taken())).collect()
    return counts["all"] or 0, {str(reason): counts[reason] for reason in LabelRefusal if counts[reason]}


def _is_taken() -> Column:
    return F.col("position").isNotNull() & F.col("is_example").isNull() & (F.col("labels") > 0)


def _refused(taken: Column) -> list[Column]:
    """How many labels count for nothing, a column for each reason."""
    return [
        *(F.sum(reason).alias(reason) for reason in _OF_THE_LABEL),
        F.sum(F.when(F.col("is_example"), F.col("labels"))).alias(LabelRefusal.EXAMPLE),
        F.sum(F.when(F.expr("is_example IS NULL AND position IS NULL"), F.col("labels"))).alias(
            LabelRefusal.UNKNOWN_EVENT
        ),
        F.sum(F.when(taken, F.col("labels") - 1)).alias(LabelRefusal.SUPERSEDED),
    ]


def known_labels(
    spark: SparkSession,
    packed: PackedApplication,
    pinned: LabelledEvents,
    examples: int,
    since: Mapping[int, int] | None = None,
) -> DataFrame:
    """Each event id that has a label: the newest one that passes, how many pass and are refused by reason, the
    position of its first copy in the archive, if it has one, its copies, and whether it is an example.

    since: by partition, the first label that is looked at; None: all are.
    """
    spark.sparkContext.addPyFile(str(packed.zip_file))
    position, in_time = F.struct(*_POSITION), F.col("kafka_timestamp") <= F.lit(pinned.as_of)
    labels = counted_labels(spark, packed.name, pinned.labels_snapshot, pinned.withdrawals_snapshot)
    if since:
        seen = F.create_map(*(F.lit(number) for each in since.items() for number in each))
        labels = labels.where(
            F.col("kafka_offset") >= F.coalesce(F.try_element_at(seen, F.col("kafka_partition")), F.lit(0))
        )
    columns = ["event_id", "label", *_POSITION]
    checked = labels.select(columns).mapInArrow(
        _checking_labels(packed), labels.select(columns).schema.add("reason", "string")
    )
    judged = checked.withColumn("reason", F.when(in_time, F.col("reason")).otherwise(LabelRefusal.FUTURE))
    passes = F.col("reason").isNull()
    newest = judged.groupBy("event_id").agg(
        F.max_by(F.when(passes, F.col("label")), F.when(passes, position)).alias("label"),
        F.count_if(passes).alias("labels"),
        *(F.count_if(F.col("reason") == reason).alias(reason) for reason in _OF_THE_LABEL),
    )
    events = counted_events(spark, packed.name, pinned.events_snapshot, pinned.withdrawals_snapshot)
    events = _with_labels(spark, packed, pinned, events).where(in_time)
    positions = events.groupBy("event_id").agg(F.min(position).alias("position"), F.count("*").alias("copies"))
    ids = _with_labels(spark, packed, pinned, newest_examples(spark, packed.name, examples))
    ids = ids.select("event_id", F.lit(True).alias("is_example"))
    return newest.join(positions, "event_id", "left").join(ids, "event_id", "left")


def _with_labels(spark: SparkSession, packed: PackedApplication, pinned: LabelledEvents, rows: DataFrame) -> DataFrame:
    """The rows whose event id has a label, whatever it says: where labels are few, no others go between executors."""
    labels = read_snapshot(spark, f"lake.{packed.name}.labels", pinned.labels_snapshot)
    return rows.join(labels.select("event_id"), "event_id", "left_semi")


def _checking_labels(packed: PackedApplication) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def check_labels(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        known = lru_cache(maxsize=1024)(partial(_text_or_refusal, packed.load()))
        for batch in batches:
            found = [known(label) for label in batch["label"].to_pylist()]
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            columns["label"] = pa.array([text for text, _ in found], pa.string())
            yield pa.RecordBatch.from_pydict(
                columns | {"reason": pa.array([reason for _, reason in found], pa.string())}
            )

    return check_labels


def _text_or_refusal(application: Application, label: str | None) -> tuple[str | None, str | None]:
    if label is None:
        return None, LabelRefusal.MISSING
    try:
        return label_text(application.objective, label), None
    except Exception:  # whatever an objective of the user's own raises
        return None, LabelRefusal.WRONG


def admitted(
    spark: SparkSession, settings: Settings, packed: PackedApplication, found: LabelledEvents, examples: int
) -> DataFrame:
    """The labelled events as rows: event id, payload, label, split; or why they are refused.

    examples: the snapshot of those that the events go with.
    """
    application = packed.load()
    known = known_labels(spark, packed, found, examples).where("position IS NOT NULL AND is_example IS NULL")
    recent = F.lit(False) if found.recent_from is None else _is_past(found.recent_from)
    labelled = known.where("label IS NOT NULL").select("event_id", "label", recent.alias("is_recent"))
    events = counted_events(spark, packed.name, found.events_snapshot, found.withdrawals_snapshot)
    events = _with_labels(spark, packed, found, events)
    given = events.where(F.col("kafka_timestamp") <= F.lit(found.as_of)).join(labelled, "event_id")
    schema = from_arrow_schema(_checked_schema(application))
    # The id as bytes: the archive keeps a key as it came, and one that is no UTF-8 could not be read as text.
    key = F.col("event_id").cast("binary").alias("key")
    checked = given.select(key, "value", "label", "is_recent", F.struct(*_POSITION).alias(_PLACE)).mapInArrow(
        _checking_events(settings, packed), schema
    )
    if found.sent_again:
        good, refused = checked.where(F.col(REASON).isNull()), checked.where(F.col(REASON).isNotNull())
        first = F.min_by(F.struct(*checked.columns), _PLACE).alias("first")
        checked = good.groupBy("event_id").agg(first).select("first.*").unionByName(refused)
    return checked.drop(_PLACE)


def _is_past(position: Position) -> Column:
    """Whether an event is at or past a position."""
    named = zip(position, _POSITION_TYPES, _POSITION, strict=True)
    return F.col("position") >= F.struct(*(F.lit(value).cast(kind).alias(name) for value, kind, name in named))


def _checked_schema(application: Application) -> pa.Schema:
    text = [pa.field(name, pa.string()) for name in ("label", "split", REASON)]
    payload = [field.with_nullable(True) for field in payload_schema(application.event)]  # a refused row has none
    place = zip(_POSITION, (pa.timestamp("us", "UTC"), pa.int32(), pa.int64()), strict=True)
    return pa.schema([pa.field("event_id", pa.string()), *payload, *text, pa.field(_PLACE, pa.struct(list(place)))])


def _checking_events(
    settings: Settings, packed: PackedApplication
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    limit_bytes = settings.event_limit_bytes

    def check_events(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        application = packed.load()
        schema, split_of = _checked_schema(application), SplitOfEvents(application)
        for batch in batches:
            given = batch.to_pylist()
            checked = check(application.event, [(row["key"], row["value"]) for row in given], limit_bytes=limit_bytes)
            found = [split_of(event) for event in checked.events_N]
            passed = [given[n] for n in checked.rows_N]
            columns = dict(zip(checked.payload.schema.names, checked.payload.columns, strict=True)) | {
                "event_id": [event.event_id for event in checked.events_N],
                "label": [row["label"] for row in passed],
                "split": [RECENT if row["is_recent"] else split for row, split in zip(passed, found, strict=True)],
                REASON: [EventRefusal.NO_SPLIT if split is None else None for split in found],
                _PLACE: [row[_PLACE] for row in passed],
            }
            yield pa.RecordBatch.from_pydict(columns, schema=schema)
            refused = [
                {"event_id": given[n]["key"].decode(errors="replace"), REASON: str(refusal.reason)}
                for n, refusal in checked.refused
            ]
            yield pa.RecordBatch.from_pylist(refused, schema=schema)

    return check_events


class SplitOfEvents:
    """Where an application's rule puts an event that is no example.

    The rule has no word on it where every source names its split, where it goes by a column that the events do not
    have, and outside the intervals of `ByTime`: such an event is learned from.
    """

    def __init__(self, application: Application) -> None:
        self._rule = application.splits
        self._column = field_of(application, self._rule.column)
        named = all(getattr(source, "split", None) is not None for source in application.sources)
        self._silent = named or (self._rule.column is not None and self._column is None)

    def __call__(self, event: Event) -> str | None:
        """The split; None where the event lacks what the rule goes by."""
        if self._silent:
            return TRAIN
        value = None if self._column is None else getattr(event, self._column)
        try:
            return self._rule.split_of(event.event_id, value) or TRAIN
        except ValueError:
            return None


def field_of(application: Application, column: str | None) -> str | None:
    """The event's field that holds what a rule's `column` does: of that name, or filled from it by the sources."""
    if column is None or column in application.event.model_fields:
        return column
    filled = set()
    for source in application.sources:
        filled |= {field for field, given in getattr(source, "columns", {}).items() if given == column}
        filled |= {"occurred_at"} if getattr(source, "occurred_at", None) == column else set()
    return filled.pop() if len(filled) == 1 else None


def without_leaks(application: Application, events: DataFrame, examples: DataFrame) -> DataFrame:
    """Events as `admitted` gives them, with a reason where one would bring a payload or a group into a second split.

    What the examples have in several splits themselves, as they do where payloads are few, gives nothing away.
    """
    fields = application.event.model_fields
    payload = set(payload_schema(application.event).names)
    content = content_hash([column for column in examples.schema if column.name in payload]).alias(_CONTENT)
    # A file says 19.90, and a JSON number 19.9.
    decimals = {name: F.col(name) for name in payload if is_decimal(fields[name].annotation)}
    short = {name: F.regexp_replace(value, r"\.0*$|(\.\d*[1-9])0+$", "$1") for name, value in decimals.items()}
    examples, kept = examples.withColumns(short), {f"__{name}": value for name, value in decimals.items()}
    events = events.withColumns(kept).withColumns(short).withColumn(_CONTENT, content)
    events = events.drop(*decimals).withColumnsRenamed({f"__{name}": name for name in decimals})
    held_out = (F.col(REASON).isNull()) & (F.col("split") != TRAIN)
    alike = examples.select(content, "split").join(events.select(_CONTENT), _CONTENT, "left_semi")
    in_examples = alike.groupBy(_CONTENT).agg(F.collect_set("split").alias("__splits"))
    in_events = events.where(held_out).select(_CONTENT, F.lit(True).alias("__held_out")).distinct()
    leaks = F.when(
        F.col("__splits").isNotNull(),
        (F.col("split") != RECENT) & ~F.array_contains("__splits", F.col("split")),
    ).otherwise((F.col("split") == TRAIN) & F.col("__held_out").isNotNull())
    marked = (
        events.join(in_examples, _CONTENT, "left")
        .join(in_events, _CONTENT, "left")
        .withColumn(REASON, F.coalesce(REASON, F.when(leaks, F.lit(EventRefusal.PAYLOAD_HELD_OUT))))
        .drop(_CONTENT, "__splits", "__held_out")
    )
    field = field_of(application, application.splits.column)
    if not application.splits.grouped or field not in payload:
        return marked
    divided = F.when((F.col("split") != RECENT) & (F.col("split") != F.col(_SPLIT)), F.lit(EventRefusal.GROUP_HELD_OUT))
    groups = examples.groupBy(group_column(examples.schema[field]).alias(_GROUP)).agg(F.first("split").alias(_SPLIT))
    return (
        marked.join(groups, group_column(events.schema[field]) == F.col(_GROUP), "left")
        .withColumn(REASON, F.coalesce(REASON, divided))
        .drop(_GROUP, _SPLIT)
    )
