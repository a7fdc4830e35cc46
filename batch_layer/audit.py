"""Audit: the quality of an ingest's new rows, measured on their branch before anybody else can read them.

1. What is NULL is counted, and new and known rows by label.
2. By the hash of their payload they are held against each other and against what the table has: equal content in two
   splits, or with two labels.
3. The champion, where there is one, answers a sample of the new rows, and one of the table's test rows with the same
   labels: by how much more it disagrees with the new labels.
4. The raw objects that Spark's readers have read are read once more, for those compare no hash: theirs is to be the
   recorded one. Whole objects were compared when they were fetched.
All are aggregates of Spark's: the driver gets figures, and never more than SAMPLE errors of each kind.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from batch_layer.newest import content_hash
from batch_layer.quality import distribution_shift, excess_error, measure, share
from batch_layer.raw_objects import RawObjects, raw_key
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application, payload_schema
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput, UnfitModel
from deeplambda.loading import PackedApplication
from deeplambda.objective import Regression
from deeplambda.records.answers import answered
from deeplambda.records.lifecycle import QualityMeasure
from deeplambda.sources import Reader, matched
from deeplambda.splits import TEST
from deeplambda.state.card import Card

SAMPLE = 2_000
"""Rows of each kind that the champion answers: enough to tell a difference of 0.1 from chance."""
FEWEST = 30
"""Fewer rows of either kind tell nothing of a distribution."""
_LABELS = 1_000
"""So many, the most frequent ones, are looked at where an objective's labels are endless."""
_STRATA = 1 << 20
_KIND, _UPTO, _IS_NEW = "__kind", "__upto", "__is_new"  # no field of an event is called so
_ERRORS = pa.schema([("is_new", pa.bool_()), ("error", pa.float64())])
_COUNT = pa.schema([("unsound", pa.int64())])

Batches = Iterator[pa.RecordBatch]
_log = logging.getLogger(__name__)


def audit(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    added: DataFrame,
    table: DataFrame,
    champion: Card | None,
    objects: RawObjects,
) -> list[QualityMeasure]:
    """The measures of new rows. added: they; table: the rows that counted before them, each event id once; objects:
    those that were read."""
    application = packed.load()
    found = _of_columns(application, added)
    found += _of_content(application, added, table)
    labels = _by_label(application, added, table)
    if min(sum(of.values()) for of in labels) >= FEWEST:
        found.append(measure("label_shift", distribution_shift(*labels), sum(labels[0].values())))
        if champion is not None:
            found += _disagreement(spark, settings, packed, champion, added, table, labels)
    return found + _of_objects(spark, settings, packed, objects)


def _of_columns(application: Application, added: DataFrame) -> list[QualityMeasure]:
    optional = [field.name for field in payload_schema(application.event) if field.nullable]
    counts = [F.count_if(F.col(f"`{name}`").isNull()).alias(name) for name in (*optional, "label")]
    rows, *missing = added.agg(F.count("*"), *counts).collect()[0]
    nulls = [share("nulls", some, rows, name) for name, some in zip(optional, missing, strict=False)]
    return [*nulls, share("unlabelled", missing[-1], rows)]


def _of_content(application: Application, added: DataFrame, table: DataFrame) -> list[QualityMeasure]:
    names = set(payload_schema(application.event).names)

    def of(rows: DataFrame, *, is_new: bool) -> DataFrame:
        payload = content_hash(field for field in rows.schema if field.name in names)
        return rows.select("event_id", payload.alias("payload"), "split", "label", F.lit(is_new).alias("is_new"))

    ours = of(added, is_new=True)
    others = (
        of(table, is_new=False)
        .join(ours.select("event_id"), "event_id", "left_anti")  # those that stay
        .join(ours.select("payload"), "payload", "left_semi")  # few of a large table: the others are not dealt out
    )
    by_content = (
        ours.unionByName(others)
        .groupBy("payload")
        .agg(
            F.count_if("is_new").alias("rows"),
            (F.min("split") != F.max("split")).alias("leaks"),
            (F.min("label") != F.max("label")).alias("conflicts"),
        )
        .where("rows > 0")
    )
    rows, leaks, conflicts = by_content.agg(
        F.sum("rows"), F.sum(F.when(F.col("leaks"), F.col("rows"))), F.sum(F.when(F.col("conflicts"), F.col("rows")))
    ).collect()[0]
    return [share("leaks", leaks or 0, rows or 0), share("label_conflicts", conflicts or 0, rows or 0)]


def _by_label(application: Application, added: DataFrame, table: DataFrame) -> tuple[dict[str, int], dict[str, int]]:
    """Labelled rows by label, of both; of numbers by the table's tenths."""
    kind = _label_kind(application, table).alias("label")
    both = [rows.select(kind, F.lit(of).alias("of")) for of, rows in enumerate((added, table))]
    grouped = both[0].unionAll(both[1]).where("label IS NOT NULL").groupBy("label")
    counts = [F.count_if(F.col("of") == of).alias(name) for of, name in enumerate(("new", "known"))]
    found = grouped.agg(*counts).orderBy(F.desc("new"), F.desc("known")).limit(_LABELS).collect()
    return {row.label: row.new for row in found if row.new}, {row.label: row.known for row in found if row.known}


def _label_kind(application: Application, table: DataFrame) -> Column:
    if not isinstance(application.objective, Regression):
        return F.col("label")
    tenths = [n / 10 for n in range(1, 10)]
    edges = table.select(F.percentile_approx(F.col("label").cast("double"), tenths, 1_000)).collect()[0][0] or []
    number = F.col("label").cast("double")
    below = sum((F.when(number > edge, 1).otherwise(0) for edge in sorted(set(edges))), F.lit(0))
    return F.when(number.isNotNull(), below.cast("string"))


def _disagreement(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    champion: Card,
    added: DataFrame,
    table: DataFrame,
    labels: tuple[Mapping[str, int], Mapping[str, int]],
) -> list[QualityMeasure]:
    """Against the table's test rows, for the champion knows the labels of those that it was trained on."""
    kind = _label_kind(packed.load(), table)
    judged = table.where((F.col("split") == TEST) & F.col("label").isNotNull())
    known = {row["label"]: row["count"] for row in judged.groupBy(kind.alias("label")).count().collect()}
    both = [label for label in labels[0] if label in known]
    if not both:
        return []
    wanted = {label: min(labels[0][label], known[label], max(1, SAMPLE // len(both))) for label in both}
    payload = payload_schema(packed.load().event).names

    def sample(rows: DataFrame, there: Mapping[str, int], *, is_new: bool) -> DataFrame:
        shares = [(label, int(_STRATA * wanted[label] / there[label])) for label in both]
        strata = F.broadcast(spark.createDataFrame(shares, f"{_KIND} STRING, {_UPTO} INT"))
        drawn = F.pmod(F.xxhash64("event_id"), F.lit(_STRATA)) < F.col(_UPTO)
        chosen = rows.where("label IS NOT NULL").withColumn(_KIND, kind).join(strata, _KIND).where(drawn)
        return chosen.select(*(f"`{name}`" for name in payload), "label", F.lit(is_new).alias(_IS_NEW))

    rows = sample(added, labels[0], is_new=True).unionByName(sample(judged, known, is_new=False))
    answered = rows.mapInArrow(_judging(settings, champion, payload), from_arrow_schema(_ERRORS)).toArrow()
    errors, is_new = answered["error"].to_numpy(), answered["is_new"].to_numpy()
    if min(is_new.sum(), len(is_new) - is_new.sum()) < FEWEST:
        return []
    return [measure("champion_disagreement", excess_error(errors[is_new], errors[~is_new]), int(is_new.sum()))]


def _judging(settings: Settings, champion: Card, payload: Sequence[str]) -> Callable[[Batches], Batches]:
    """For mapInArrow: an error of each row that the champion has an answer for."""
    written = champion.model_dump_json()

    def judge(batches: Batches) -> Batches:
        from batch_layer.recompute import loaded, model_outputs
        from batch_layer.same_rows import as_payload_of

        try:
            code, model = loaded(settings, written)
            for batch in batches:
                admitted = code.featurizer.isolated(as_payload_of(code.featurizer, batch.select(payload)))
                found = answered(partial(model_outputs, model), code.application.objective, admitted.features)
                judged = batch.take(pa.array([admitted.rows_N[n] for n in found.rows_N], pa.int64()))
                answers = zip(judged["label"].to_pylist(), found.values_N, found.numbers_N, strict=True)
                errors = pa.array([_error(*answer) for answer in answers], pa.float64())
                yield pa.RecordBatch.from_arrays([judged[_IS_NEW], errors], schema=_ERRORS)
        except (BadInput, UnfitModel) as exc:  # it cannot be asked, which is no fault of the new rows
            _log.warning("%s/%d does not judge the new rows: %s", champion.application, champion.version, exc)

    return judge


def _error(label: str, value: str, number: float | None) -> float:
    return float(label != value) if number is None else abs(float(label) - number)


def _of_objects(
    spark: SparkSession, settings: Settings, packed: PackedApplication, objects: RawObjects
) -> list[QualityMeasure]:
    application = packed.load()
    ages_s = now().timestamp() - objects.stored_s
    readers = (source for source in application.sources if isinstance(source, Reader))
    uncompared = {name for source in readers for path in source.paths for name in matched(path, objects.tags)}
    bad = _unsound(spark, settings, [raw_key(application.name, name) for name in sorted(uncompared)])
    delays = [
        measure("delay_s", float(np.quantile(ages_s, of)), len(ages_s), f"object to lake, p{of * 100:.0f}")
        for of in (0.5, 1.0)
    ]
    return [share("unreadable", bad, len(ages_s)), *delays]


def _unsound(spark: SparkSession, settings: Settings, keys: Sequence[str]) -> int:
    """How many objects have another hash than the recorded one."""
    if not keys:
        return 0

    def read(batches: Batches) -> Batches:
        store = ObjectStore(settings)
        bad = sum(not store.is_sound(key) for batch in batches for key in batch["key"].to_pylist())
        yield pa.RecordBatch.from_pylist([{"unsound": bad}], schema=_COUNT)

    tasks = min(len(keys), spark.sparkContext.defaultParallelism)
    objects = spark.createDataFrame([(key,) for key in keys], "key STRING").repartition(tasks)
    return objects.mapInArrow(read, from_arrow_schema(_COUNT)).agg(F.sum("unsound")).collect()[0][0] or 0
