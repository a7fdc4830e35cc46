"""Held rows: what an ingest adds waits on a branch of `examples` until it is audited, and longer where a person has to
decide. Readers of the table see the rows once they are published, which is one change of a reference.

There is one branch at a time: the next ingest reads the raw objects of what waits once more, so that what it adds
comprises that.
"""

from collections.abc import Callable
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from deeplambda.adapters.lake import Written, change_tag, current_snapshot, read_snapshot
from deeplambda.errors import BadInput

_PREFIX, _TAKEN_BACK = "ingest-", "taken-back-"


def branches(spark: SparkSession, application: str) -> dict[str, int]:
    """The newest snapshot of each branch that waits, by its name."""
    refs = f"lake.{application}.examples.refs"
    found = spark.sql(f"SELECT name, snapshot_id FROM {refs} WHERE type = 'BRANCH' AND name LIKE '{_PREFIX}%'")
    return {row.name: row.snapshot_id for row in found.collect()}


def new_branch(spark: SparkSession, application: str, ingest: str) -> str:
    """A branch that begins where the table is now, in place of any that waits; the table to write to."""
    table, branch = f"lake.{application}.examples", f"{_PREFIX}{ingest}"
    drop_waiting(spark, application)
    change_tag(spark, table, f"CREATE OR REPLACE BRANCH `{branch}`")
    return branch


def drop_waiting(spark: SparkSession, application: str) -> None:
    """Give up what waits, for the raw objects say something else by now."""
    for waiting in branches(spark, application):
        drop(spark, application, waiting)


def current(spark: SparkSession, application: str) -> int | None:
    """The snapshot that readers of the table see, whoever made it."""
    table = f"lake.{application}.examples"
    spark.catalog.refreshTable(table)
    return current_snapshot(spark, table)


def to_branch(application: str, branch: str) -> str:
    """What Spark writes to in order to add to the branch."""
    return f"lake.{application}.examples.`branch_{branch}`"


def added(spark: SparkSession, application: str, written: Written) -> DataFrame:
    """The rows that one append to `examples`, or to a branch of it, has added."""
    if written.parent is None:
        return read_snapshot(spark, f"lake.{application}.examples", written.snapshot)
    between = spark.read.option("start-snapshot-id", written.parent).option("end-snapshot-id", written.snapshot)
    return between.table(f"lake.{application}.examples")


def publish(spark: SparkSession, application: str, branch: str, snapshot: int) -> None:
    """Make the rows of the branch, whose newest snapshot this is, the table's."""
    spark.sql(f"CALL lake.system.set_current_snapshot(table => '{application}.examples', snapshot_id => {snapshot})")
    drop(spark, application, branch)


def drop(spark: SparkSession, application: str, branch: str) -> None:
    """Give a branch up; its rows go with the table's old snapshots."""
    change_tag(spark, f"lake.{application}.examples", f"DROP BRANCH IF EXISTS `{branch}`")


def take_back(spark: SparkSession, application: str, snapshot: int) -> None:
    """Keep a snapshot whose rows are not to come again with the next ingest, and remember that they are not."""
    tag = f"CREATE OR REPLACE TAG `{_TAKEN_BACK}{snapshot}` AS OF VERSION {snapshot}"
    change_tag(spark, f"lake.{application}.examples", tag)


def state(spark: SparkSession, application: str) -> set[tuple[str, int]]:
    """What says which rows count and which are taken back: equal as long as nobody changes it."""
    refs = f"lake.{application}.examples.refs"
    found = spark.sql(f"SELECT name, snapshot_id FROM {refs} WHERE name = 'main' OR name LIKE '{_TAKEN_BACK}%'")
    return {(row.name, row.snapshot_id) for row in found.collect()}


def taken_back(spark: SparkSession, application: str, *names: str) -> DataFrame | None:
    """The rows of ingests that a person took back, and that nobody has brought back since; None where there are none.

    An ingest that reads their object once more would add them again until it is corrected. names: of the columns that
    are wanted, each row of them once; none: all rows as they are.
    """
    table = f"lake.{application}.examples"
    tags = spark.sql(f"SELECT snapshot_id FROM {table}.refs WHERE name LIKE '{_TAKEN_BACK}%'").collect()
    if not tags:
        return None
    parts = [_as_of(spark, table, tag.snapshot_id) for tag in tags]
    if names:
        parts = [part.select(*names).distinct() for part in parts]
    rows = reduce(DataFrame.unionByName, parts)
    counted = spark.table(table).select("ingested_at").distinct()
    return rows.join(F.broadcast(counted), "ingested_at", "left_anti")


def _as_of(spark: SparkSession, table: str, snapshot: int) -> DataFrame:
    """With the columns and types of today: what was added since is NULL."""
    rows, today = read_snapshot(spark, table, snapshot), spark.table(table).schema
    return rows.select(*_fields(rows.schema, today, lambda name: F.col(f"`{name}`")))


def _fields(then: T.StructType, today: T.StructType, value: Callable[[str], Column]) -> list[Column]:
    there = {each.name: each.dataType for each in then}
    return [
        _as(value(each.name), there[each.name], each.dataType).alias(each.name)
        if each.name in there
        else F.lit(None).cast(each.dataType).alias(each.name)
        for each in today
    ]


def _as(value: Column, then: T.DataType, today: T.DataType) -> Column:
    """As today's type: field by field, for Spark casts a struct to none that has more of them. Within a list nothing is
    ever added."""
    if isinstance(then, T.StructType) and isinstance(today, T.StructType):
        return F.when(value.isNotNull(), F.struct(*_fields(then, today, value.getField)))
    return value.cast(today)


def known(spark: SparkSession, application: str, branch: str) -> int:
    """The snapshot of a branch that waits. Raises: BadInput."""
    waiting = branches(spark, application)
    if branch not in waiting:
        raise BadInput(
            f"no new rows of {application} wait on {branch!r}",
            f"there are: {', '.join(waiting)}" if waiting else "none wait: nothing is to be published or dropped",
        )
    return waiting[branch]
