"""Readers: texts and tables on S3 as rows of Spark, before any row is checked.

Spark's own readers do the work, so files are read in parallel and in parts. What Spark cannot read of a row comes as
its original in the column `MALFORMED`. Beside the payload's columns, every row has those of `ROW`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import from_arrow_schema

from batch_layer.layouts import Layout, by_layout
from batch_layer.raw_objects import unreadable
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application, payload_schema
from deeplambda.errors import BadInput, ConfigurationError
from deeplambda.sources import FALSE, TRUE, Csv, JsonLines, Lines, Parquet, Reader, Table, matched
from deeplambda.splits import DAY, MILLISECONDS_FROM, SECONDS_OR_MILLISECONDS, WHOLE_NUMBER

LABEL, EVENT_ID, OCCURRED_AT, SPLIT_BY = "__label", "__event_id", "__occurred_at", "__split_by"
FILE, BLOCK, MALFORMED = "__file", "__block", "__malformed"
ROW = (LABEL, EVENT_ID, OCCURRED_AT, SPLIT_BY, FILE, BLOCK, MALFORMED)
"""Label and id as text; time as the file has it; what splits are made by, where it is no field of the event; the file's
address, percent-encoded; the first byte of the part that the row is in, of Parquet the row's number; the original of
what could not be read."""

_LISTING_TASKS = 16
_FLOATS, _INTEGERS = (T.FloatType, T.DoubleType), (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
_NUMBERS, _TIMES = (*_FLOATS, *_INTEGERS, T.DecimalType), (T.TimestampType, T.TimestampNTZType)
_CELLS = (T.BooleanType, *_INTEGERS)
_MOST_MICROS = 9e18


class _Files(NamedTuple):
    """What Spark is to read of a source. options: with which it finds it."""

    paths: list[str]
    options: Mapping[str, str]


def read_rows(
    spark: SparkSession,
    store: ObjectStore,
    application: Application,
    reader: Reader,
    read: Iterable[str],
    known: Iterable[str],
    root: str,
) -> list[DataFrame]:
    """The rows of those objects of a source that are among `read`, of which there is at least one; those of files with
    other columns apart, for a column of one name need not be of one type.

    known: objects that are passed over. root: where objects lie. Raises: BadInput for a column that the files lack,
    ConfigurationError, CorruptObject.
    """
    names, passed_over = matched(reader.path, read), matched(reader.path, known)
    tasks = max(_LISTING_TASKS, spark.sparkContext.defaultParallelism)
    spark.conf.set("spark.sql.sources.parallelPartitionDiscovery.parallelism", str(tasks))

    def files(some: Sequence[str]) -> _Files:
        if reader.path.endswith("/") and len(some) == len(names) and not passed_over:
            # One listing instead of a question for each file.
            return _Files([root + _escaped(reader.path)], {"recursiveFileLookup": "true"})
        return _Files([root + _escaped(name) for name in some], {})

    if isinstance(reader, Lines):
        return [_lines(spark, application, reader, files(names))]
    if not isinstance(reader, Table):
        raise ConfigurationError(f"{application.name} has the source {reader!r}", "use a reader of deeplambda.sources")
    tables = _tables(spark, store, application, reader, names, passed_over, files)
    return [_rows_of(application, reader, table, file) for table, file in tables]


@contextmanager
def unreadable_named(application: str, root: str) -> Iterator[None]:
    """Failures of Spark that name a raw object become CorruptObject with its name."""
    try:
        yield
    except (PySparkException, Py4JJavaError) as exc:
        said = str(exc)
        found = re.search(re.escape(root) + r"([^\s,;'\"]+)", said)
        if found is None:
            raise
        name = found[1].rstrip(".:")
        causes = re.findall(r"^(?:Caused by: |\S*Exception: |\S*Error: )(.+)$", said, re.MULTILINE)
        cause = next((line for line in reversed(causes) if root not in line), said.partition("\n")[0])
        raise unreadable(application, name, cause.strip()[:300]) from exc


def _lines(spark: SparkSession, application: Application, reader: Lines, files: _Files) -> DataFrame:
    if payload_schema(application.event).names != [reader.column]:
        raise ConfigurationError(
            f"Lines({reader.path!r}) fills the field {reader.column!r}, the event of {application.name} has "
            f"{', '.join(payload_schema(application.event).names)}",
            "name the event's only field as column, or use another reader",
        )
    check_split_column(application, reader, ())
    # As bytes: a text that is not UTF-8 would break the whole batch on its way to Python.
    text = F.col("value").cast("binary").alias(reader.column)
    return spark.read.options(**files.options).text(files.paths).select(text, *_row(label=F.lit(reader.label)))


def _tables(
    spark: SparkSession,
    store: ObjectStore,
    application: Application,
    reader: Table,
    names: Sequence[str],
    known: Sequence[str],
    files: Callable[[Sequence[str]], _Files],
) -> Iterator[tuple[DataFrame, str]]:
    """The columns that are read of the objects `names`, those of files with other columns apart; and one such file."""
    wanted = _wanted(application, reader)
    if isinstance(reader, JsonLines):
        columns = [T.StructField(name, kind) for name, kind in wanted.items()]
        schema = T.StructType([*columns, T.StructField(MALFORMED, T.StringType())])
        found = files(names)
        yield _permissive(spark, found.options).schema(schema).json(found.paths), names[0]
        return
    layouts: Mapping[Layout, Sequence[str]] = by_layout(store, application.name, reader, names, wanted)
    if not layouts and not known:
        layouts = {Layout(): names}  # all are empty, which is no table
    for layout, some in layouts.items():
        if isinstance(reader, Csv):
            # Without headers the columns are those that all have, whatever the newest file begins with.
            asked = [files(some[:1])] if reader.header else [files([each]) for each in known] or [files(names)]
            yield _csv(spark, reader, asked, files(some), wanted), some[0]
        else:
            yield _parquet(spark, layout, files(some), wanted), some[0]


def _wanted(application: Application, reader: Table) -> dict[str, T.DataType]:
    """The columns that are read, each as the field that it fills, as far as a reader can make it that."""
    fields = _fields(application)
    if unknown := sorted(set(reader.columns) - set(fields)):
        raise ConfigurationError(
            f"the source {reader.path} fills {unknown[0]!r}, which the event of {application.name} has not",
            f"its fields are {', '.join(fields)}",
        )
    wanted = {
        reader.columns.get(name, name): kind if isinstance(reader, Parquet) else _as_text(kind, reader)
        for name, kind in fields.items()
    }
    for column in (reader.label, reader.event_id, reader.occurred_at, _split_column(application)):
        if column is not None:
            wanted.setdefault(column, T.StringType())
    if isinstance(reader, Csv):
        for column, kind in wanted.items():
            if isinstance(kind, T.ArrayType):
                raise ConfigurationError(
                    f"the source {reader.path} fills the list {column!r} of {application.name}, and a cell is no list",
                    "use JsonLines or Parquet, or give the event a field for each column",
                )
    return wanted


def _as_text(kind: T.DataType, reader: Table) -> T.DataType:
    """What is read as text of a table of texts, for Spark's own reader takes less, or takes it otherwise."""
    if isinstance(kind, (T.BinaryType, *_TIMES)) or (isinstance(reader, Csv) and isinstance(kind, _CELLS)):
        return T.StringType()
    if isinstance(kind, T.StructType):
        return T.StructType([T.StructField(field.name, _as_text(field.dataType, reader)) for field in kind])
    if isinstance(kind, T.ArrayType):
        return T.ArrayType(_as_text(kind.elementType, reader))
    return T.MapType(kind.keyType, _as_text(kind.valueType, reader)) if isinstance(kind, T.MapType) else kind


def _fields(application: Application) -> dict[str, T.DataType]:
    return {field.name: field.dataType for field in from_arrow_schema(payload_schema(application.event))}


def _rows_of(application: Application, reader: Table, table: DataFrame, file: str) -> DataFrame:
    """A table as it was read, as rows. file: one that it is of."""
    fields, there = _fields(application), table.columns
    column_of = {name: reader.columns.get(name, name) for name in fields}
    optional = {name for name, field in application.event.model_fields.items() if not field.is_required()}
    for name, column in column_of.items():
        if column not in there and name not in optional:
            raise _lacks(reader, column, there, file)
    for named in (reader.label, reader.event_id, reader.occurred_at):
        if named is not None and named not in there:
            raise _lacks(reader, named, there, file)
    check_split_column(application, reader, there, file)
    if reader.event_id is not None and isinstance(table.schema[reader.event_id].dataType, _FLOATS):
        raise BadInput(
            f"the event ids of the source {reader.path}, in the column {reader.event_id!r}, are floating-point numbers",
            "write them as integers or as text: a fraction has several texts, and an id only one",
        )

    def of(column: str | None) -> Column:
        return F.lit(None).cast("string") if column is None else F.col(_quoted(column))

    payload, unread = [], F.lit(False)
    times: dict[str | None, Column] = {}
    for name, column in column_of.items():
        if column in there:
            value, lost = _converted(of(column), table.schema[column].dataType, fields[name])
            payload.append(value.alias(name))
            times |= {column: value} if isinstance(fields[name], _TIMES) else {}
            unread = unread | lost
    originals = [of(column) for column in dict.fromkeys(column_of.values()) if column in there]
    malformed = F.when(unread, F.to_json(F.struct(*originals)))
    if MALFORMED in there:
        malformed = F.coalesce(of(MALFORMED), malformed)
    label = of(reader.label)
    if reader.label is not None and isinstance(table.schema[reader.label].dataType, _FLOATS):
        label = F.when(~F.isnan(label), label)
    by = _split_column(application)
    row = _row(
        label=label.cast("string"),
        event_id=of(reader.event_id).cast("string"),
        occurred_at=times.get(reader.occurred_at, of(reader.occurred_at)),
        split_by=times.get(by, of(by if by in there else None)),
        malformed=malformed,
        # A byte of Parquet may hold many rows, so that those of a part would be numbered into the next one.
        block="_metadata.row_index" if isinstance(reader, Parquet) else "_metadata.file_block_start",
    )
    try:
        return table.select(*payload, *row)
    except AnalysisException as exc:
        raise BadInput(
            f"the columns of {file} cannot be the fields of {application.name}: {str(exc).partition(chr(10))[0]}",
            "correct the event's types, or the file's",
        ) from exc


def _converted(value: Column, given: T.DataType, kind: T.DataType) -> tuple[Column, Column]:
    """A column as a field of `kind`, and whether it holds something that this cannot say: never a part of it, nor a
    member of an object by its position."""
    if _bare(given) == _bare(kind) or (isinstance(kind, T.BinaryType) and isinstance(given, T.StringType)):
        return value, F.lit(False)
    if isinstance(given, T.StructType) and isinstance(kind, T.StructType):
        members, lost = [], F.lit(False)
        for field in kind:
            member = F.lit(None).cast(field.dataType)
            if field.name in given.names:
                named = value.getField(field.name)
                member, lost_here = _converted(named, given[field.name].dataType, field.dataType)
                lost = lost | lost_here
            members.append(member.alias(field.name))
        return F.when(value.isNotNull(), F.struct(*members)), F.coalesce(lost, F.lit(False))
    if isinstance(given, T.ArrayType) and isinstance(kind, T.ArrayType) and not _widens(given, kind):
        inside = given.elementType, kind.elementType
        lost = F.exists(value, lambda item: _converted(item, *inside)[1])
        return F.transform(value, lambda item: _converted(item, *inside)[0]), F.coalesce(lost, F.lit(False))
    if isinstance(given, T.MapType) and isinstance(kind, T.MapType) and given.keyType == kind.keyType:
        inside = given.valueType, kind.valueType
        lost = F.exists(F.map_values(value), lambda item: _converted(item, *inside)[1])
        found = F.transform_values(value, lambda _, item: _converted(item, *inside)[0])
        return found, F.coalesce(lost, F.lit(False))
    if isinstance(given, _FLOATS) and not isinstance(kind, _FLOATS):
        value = F.when(~F.isnan(value), value)  # where integers have gaps, they are floats
    if isinstance(given, _NUMBERS) and isinstance(kind, _TIMES):
        found = _time_of_number(value.cast("double"))
    elif isinstance(given, T.StringType) and isinstance(kind, _TIMES):
        found = _time_of_text(F.trim(value))
    elif isinstance(given, T.StringType) and isinstance(kind, T.BooleanType):
        said = F.lower(F.trim(value))
        found = F.when(said.isin(*TRUE), F.lit(True)).when(said.isin(*FALSE), F.lit(False))
    elif isinstance(given, T.StringType) and isinstance(kind, _INTEGERS):
        found = F.coalesce(value.try_cast(kind), F.regexp_replace(F.trim(value), WHOLE_NUMBER, "$1").try_cast(kind))
    else:
        found = value.try_cast(kind)
    kept = found.try_cast(given) == value if _narrows(given, kind) else found.isNotNull()
    return found, value.isNotNull() & ~F.coalesce(kept, F.lit(False))


def _time_of_number(number: Column) -> Column:
    """As `moment` takes one."""
    micros = F.when(F.abs(number) > MILLISECONDS_FROM, number * 1e3).otherwise(number * 1e6)
    return F.when(F.abs(micros) < _MOST_MICROS, F.timestamp_micros(F.round(micros).cast("bigint")))


def _time_of_text(text: Column) -> Column:
    """As `moment` takes one. Of an hour alone Spark would make one of today."""
    return (
        F.when(text.rlike(rf"^{DAY}$"), F.try_to_timestamp(text, F.lit("yyyyMMdd")))
        .when(text.rlike(rf"^{SECONDS_OR_MILLISECONDS}$"), _time_of_number(text.try_cast("double")))
        .when(text.rlike(r"^\d+-"), text.try_cast("timestamp"))
    )


def _widens(given: T.ArrayType, kind: T.ArrayType) -> bool:
    """Whether one cast of a list keeps each item, which is quicker than a function of each."""
    return isinstance(given.elementType, (*_FLOATS, *_INTEGERS)) and isinstance(kind.elementType, _FLOATS)


def _narrows(given: T.DataType, kind: T.DataType) -> bool:
    """Whether a cast leaves out what does not fit: a fraction, a time of day."""
    if isinstance(given, _NUMBERS):
        return isinstance(kind, (*_INTEGERS, T.BooleanType))
    return isinstance(given, _TIMES) and isinstance(kind, T.DateType)


def _bare(kind: T.DataType) -> T.DataType:
    """The type, whatever may be null in it."""
    if isinstance(kind, T.StructType):
        return T.StructType([T.StructField(field.name, _bare(field.dataType)) for field in kind])
    if isinstance(kind, T.ArrayType):
        return T.ArrayType(_bare(kind.elementType))
    if isinstance(kind, T.MapType):
        return T.MapType(_bare(kind.keyType), _bare(kind.valueType))
    return kind


def _csv(
    spark: SparkSession, reader: Csv, asked: Sequence[_Files], files: _Files, wanted: Mapping[str, T.DataType]
) -> DataFrame:
    """asked: files with the columns of all, one after the other, for a file may be empty."""
    spark.conf.set("spark.sql.legacy.javaCharsets", "true")  # else UTF and Latin-1 alone
    form = {
        "sep": reader.separator,
        "header": str(reader.header).lower(),
        "escape": '"',  # RFC 4180
        "encoding": reader.charset,
        "multiLine": str(reader.multiline).lower(),
    }
    found = (spark.read.options(**form, **each.options).csv(each.paths).columns for each in asked)
    names: list[str] = next(filter(None, found), [])
    columns = [T.StructField(name, wanted.get(name, T.StringType())) for name in names]
    schema = T.StructType([*columns, T.StructField(MALFORMED, T.StringType())])
    # By position: these files have one header.
    table = _permissive(spark, form | dict(files.options)).option("enforceSchema", "true")
    return table.schema(schema).csv(files.paths)


def _parquet(spark: SparkSession, layout: Layout, files: _Files, wanted: Mapping[str, T.DataType]) -> DataFrame:
    # Spark has no times in nanoseconds, which pandas writes: they are read as numbers and divided.
    spark.conf.set("spark.sql.legacy.parquet.nanosAsLong", "true")
    found = spark.read.options(**files.options).parquet(*files.paths).schema
    schema = T.StructType([field for field in found if field.name in wanted])
    table = spark.read.options(**files.options).schema(schema).parquet(*files.paths)
    return table.withColumns(
        {name: F.timestamp_micros(F.expr(f"{_quoted(name)} div 1000")) for name in layout.nanoseconds}
    )


def _permissive(spark: SparkSession, options: Mapping[str, str]) -> DataFrameReader:
    return spark.read.options(mode="PERMISSIVE", columnNameOfCorruptRecord=MALFORMED, **options)


def _row(
    *,
    label: Column | None = None,
    event_id: Column | None = None,
    occurred_at: Column | None = None,
    split_by: Column | None = None,
    malformed: Column | None = None,
    block: str = "_metadata.file_block_start",
) -> list[Column]:
    none = F.lit(None).cast("string")
    given = (label, event_id, occurred_at, split_by)
    columns = [none if column is None else column for column in given]
    columns += [F.col("_metadata.file_path"), F.col(block)]
    columns.append(none if malformed is None else malformed)
    return [column.alias(name) for column, name in zip(columns, ROW, strict=True)]


def _split_column(application: Application) -> str | None:
    """The column that splits are made by, where it is no field of the event."""
    column = application.splits.column
    return None if column in application.event.model_fields else column


def check_split_column(application: Application, reader: Reader, there: Sequence[str], file: str = "") -> None:
    """Raises: BadInput where the splits are made by a column that is none of the event's fields nor of `there`."""
    by, pinned = _split_column(application), getattr(reader, "split", None) is not None
    if by is not None and by not in there and (application.splits.grouped or not pinned):
        raise _lacks(reader, by, there or ["only the event's fields"], file)


def _lacks(reader: Reader, column: str, there: Sequence[str], file: str) -> BadInput:
    named = ", ".join(name for name in there if name != MALFORMED)
    place = f" in {file}" if file not in ("", reader.path) else ""
    return BadInput(
        f"the source {reader.path} has no column {column!r}{place}; it has {named}",
        "name the file's column in the source's `columns`, `label`, `event_id` or `occurred_at`, or in `splits`",
    )


def _quoted(column: str) -> str:
    return f"`{column.replace('`', '``')}`"


def _escaped(name: str) -> str:
    """Spark takes every path for a glob."""
    return re.sub(r"([{}\[\]*?\\])", r"\\\1", name)
