"""Refused ingests: what is wrong with the rows of a run as a whole, so that nothing of it is written.

An object that is damaged, too large or that `examples()` fails on; an event id or a declared group in two splits; a
split without a row.
"""

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql import types as T

from batch_layer.quality import share
from batch_layer.row_checks import DETAIL, GROUP, LEFT_OUT, REASON
from batch_layer.whole_objects import CORRUPT_OBJECT, EXAMPLES_FAILED, TOO_LARGE
from deeplambda.application import Application, payload_schema
from deeplambda.errors import BadInput, CorruptObject
from deeplambda.records.lifecycle import QualityMeasure
from deeplambda.sources import split_names
from deeplambda.splits import WHOLE_NUMBER

_OUT_OF_RANGE = "should (be (greater|less) than|be a multiple|have at (least|most)|match pattern)"
"""In pydantic's words, that a value has the declared type and not the declared range."""


def verdicts_of(checked: DataFrame) -> list[Row]:
    """Rows, labelled rows and the first detail by reason and split. Raises: CorruptObject, BadInput."""
    counts = F.count("*").alias("rows"), F.count("label").alias("labelled"), F.min(DETAIL).alias("detail")
    outside = F.count_if(F.col(DETAIL).rlike(_OUT_OF_RANGE)).alias("outside")
    verdicts: list[Row] = checked.groupBy(F.col(REASON).alias("reason"), "split").agg(*counts, outside).collect()
    for row in verdicts:
        if row["reason"] == CORRUPT_OBJECT:
            raise CorruptObject(row["detail"], "upload the original again with 'deeplambda data put', then ingest")
        if row["reason"] == TOO_LARGE:
            raise BadInput(
                f"examples() gets objects whole, and a worker's memory cannot hold {row['detail']}",
                "divide it into several objects and name them by a glob, or give Spark's workers more memory",
            )
        if row["reason"] == EXAMPLES_FAILED:
            raise BadInput(f"examples() failed on {row['detail']}", "fix the application's examples()")
    return verdicts


def refused_of(verdicts: list[Row]) -> list[Row]:
    """Those of rows that go to the quarantine."""
    return [row for row in verdicts if row["reason"] not in (None, LEFT_OUT)]


def measures_of(verdicts: list[Row]) -> list[QualityMeasure]:
    """Of the raw rows that were looked at: those refused, by reason, and those outside a declared range."""
    rows = sum(row["rows"] for row in verdicts if row["reason"] != LEFT_OUT)
    by_reason: dict[str, int] = {}
    for row in refused_of(verdicts):
        by_reason[row["reason"]] = by_reason.get(row["reason"], 0) + row["rows"]
    refused = [share("refused", some, rows, reason) for reason, some in by_reason.items()]
    outside = sum(row["outside"] for row in refused_of(verdicts))
    return [*(refused or [share("refused", 0, rows)]), share("out_of_range", outside, rows)]


def refuse_leaks(application: Application, counts: list[Row]) -> None:
    """counts: by split, with an event id that is in another one too. Raises: BadInput."""
    for split, leak in ((row["split"], row["leak"]) for row in counts if row["leak"]):
        raise BadInput(
            f"event {leak['event_id']!r} of {application.name} is in the splits {leak['last_split']!r} and {split!r}",
            "leave it in one, or give rows event ids of their own; nothing was written",
        )
    for split, moved in ((row["split"], row["moved"]) for row in counts if row["moved"]):
        raise BadInput(
            f"event {moved['event_id']!r} of {application.name} would be in the split {split!r}, and is in "
            f"{moved['split']!r} since an earlier ingest",
            "leave the application's splits as they were, or give the application another name; nothing was written",
        )


def group_column(field: T.StructField) -> Column:
    """A kept field as `group_text` has its values."""
    value = F.col(field.name)
    text = value.cast("string")
    if isinstance(field.dataType, (T.FloatType, T.DoubleType)):
        return F.coalesce(F.when(value % 1 == 0, value.try_cast("decimal(38,0)").cast("string")), text)
    return F.initcap(text) if isinstance(field.dataType, T.BooleanType) else F.regexp_replace(text, WHOLE_NUMBER, "$1")


def divided_group(application: Application, good: DataFrame, examples: DataFrame) -> Row | None:
    """A declared group with two splits; None where there is none. good: the rows of the run; examples: of the lake."""
    column = application.splits.column
    if not application.splits.grouped or column is None:
        return None
    groups = good.select(F.col(GROUP).alias("group"), "split")
    if column in payload_schema(application.event).names:
        groups = groups.unionAll(examples.select(group_column(examples.schema[column]), "split"))
    divided: Row | None = (
        groups.where("group IS NOT NULL")
        .groupBy("group")
        .agg(F.min("split").alias("split"), F.max("split").alias("last_split"))
        .where("split <> last_split")
        .orderBy("group")
        .first()
    )
    return divided


def refuse_divided_groups(application: Application, good: DataFrame, examples: DataFrame) -> None:
    """Raises: BadInput."""
    if (divided := divided_group(application, good, examples)) is not None:
        raise BadInput(
            f"{application.splits.column} {divided['group']!r} of {application.name} is in the splits "
            f"{divided['last_split']!r} and {divided['split']!r}",
            "put all rows of a group in one split; nothing was written",
        )


def refuse_empty(application: Application, verdicts: list[Row], examples: DataFrame) -> None:
    """Raises: BadInput for a split that has a labelled row neither of the run nor in the lake."""
    splits = split_names(application.sources, application.splits)
    filled = {row["split"] for row in verdicts if row["reason"] is None and row["labelled"]}
    if set(splits) <= filled:
        return
    filled |= {row["split"] for row in examples.where("label IS NOT NULL").select("split").distinct().collect()}
    if empty := [split for split in splits if split not in filled]:
        refused = refused_of(verdicts)
        bad = sum(row["rows"] for row in refused)
        left_out = sum(row["rows"] for row in verdicts if row["reason"] == LEFT_OUT)
        unlabelled = sum(row["rows"] for row in verdicts if row["reason"] is None and row["split"] == empty[0])
        why = [
            f"{bad:,} rows were refused, such as: {refused[0]['detail']}" if refused else "",
            f"{left_out:,} rows are outside its intervals" if left_out else "",
            f"{unlabelled:,} rows have no label" if unlabelled else "",
        ]
        raise BadInput(
            f"the split {empty[0]!r} of {application.name} would have no labelled rows"
            + "".join(f"; {reason}" for reason in why if reason),
            "see that the sources hold rows for it, or set the application's splits; nothing was written",
        )
