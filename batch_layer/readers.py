"""Readers: texts and tables on S3 as rows of Spark, before any row is checked.

Spark's own readers do the work, so files are read in parallel and in parts. What Spark cannot read of a row comes as
its original in the column `MALFORMED`. Beside the payload's columns, every row has those of `ROW`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import from_arrow_schema

from deeplambda.application import Application, payload_schema
from deeplambda.errors import BadInput, ConfigurationError, CorruptObject
from deeplambda.sources import Csv, JsonLines, Lines, Parquet, Reader, Table, matched

LABEL, EVENT_ID, OCCURRED_AT, SPLIT_BY = "__label", "__event_id", "__occurred_at", "__split_by"
FILE, BLOCK, MALFORMED = "__file", "__block", "__malformed"
ROW = (LABEL, EVENT_ID, OCCURRED_AT, SPLIT_BY, FILE, BLOCK, MALFORMED)
"""Label and id as text; time as the file has it; what splits are made by, where it is no field of the event; the file's
address, percent-encoded; the first byte of the part that the row is in, of Parquet the row's number; the original of
what could not be read."""

_LISTING_TASKS = 16
_NANOSECONDS = re.compile(r"int64 (\S+) \(TIMESTAMP\(NANOS")


class _Files(NamedTuple):
    """What Spark is to read of a source. options: with which it finds it. alike: paths that are asked one after the
    other for the columns of all, for a file may be empty."""

    paths: list[str]
    options: Mapping[str, str]
    alike: list[list[str]]


def read_rows(
    spark: SparkSession, application: Application, reader: Reader, read: Iterable[str], known: Iterable[str], root: str
) -> DataFrame:
    """The rows of those objects of a source that are among `read`, of which there is at least one.

    known: objects that are passed over; where there are any, their columns are those that all have. root: where objects
    lie. Raises: BadInput for a column that the files lack, ConfigurationError.
    """
    paths, others = ([root + _escaped(name) for name in matched(reader.path, names)] for names in (read, known))
    options = {}
    if reader.path.endswith("/") and not others:  # one listing instead of a question for each file
        paths, options = [root + _escaped(reader.path)], {"recursiveFileLookup": "true"}
    files = _Files(paths, options, [[path] for path in others] or [paths])
    tasks = max(_LISTING_TASKS, spark.sparkContext.defaultParallelism)
    spark.conf.set("spark.sql.sources.parallelPartitionDiscovery.parallelism", str(tasks))
    if isinstance(reader, Lines):
        return _lines(spark, application, reader, files)
    if isinstance(reader, Table):
        return _table(spark, application, reader, files)
    raise ConfigurationError(f"{application.name} has the source {reader!r}", "use a reader of deeplambda.sources")


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
        raise CorruptObject(
            f"raw object {name} of {application} cannot be read: {cause.strip()[:300]}",
            "upload the original again with 'deeplambda data put', then ingest",
        ) from exc


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


def _table(spark: SparkSession, application: Application, reader: Table, files: _Files) -> DataFrame:
    fields = {field.name: field.dataType for field in from_arrow_schema(payload_schema(application.event))}
    if unknown := sorted(set(reader.columns) - set(fields)):
        raise ConfigurationError(
            f"the source {reader.path} fills {unknown[0]!r}, which the event of {application.name} has not",
            f"its fields are {', '.join(fields)}",
        )
    column_of = {name: reader.columns.get(name, name) for name in fields}
    wanted = {
        column: T.StringType() if isinstance(fields[name], T.BinaryType) else fields[name]
        for name, column in column_of.items()
    }
    by = _split_column(application)
    for column in (reader.label, reader.event_id, reader.occurred_at, by):
        if column is not None:
            wanted.setdefault(column, T.StringType())
    if isinstance(reader, Csv):
        table = _csv(spark, application, reader, files, wanted)
    elif isinstance(reader, JsonLines):
        columns = [T.StructField(name, kind) for name, kind in wanted.items()]
        schema = T.StructType([*columns, T.StructField(MALFORMED, T.StringType())])
        table = _permissive(spark, files.options).schema(schema).json(files.paths)
    else:
        table = _parquet(spark, files)
    there = table.columns
    optional = {name for name, field in application.event.model_fields.items() if not field.is_required()}
    for name, column in column_of.items():
        if column not in there and name not in optional:
            raise _lacks(reader, column, there)
    for column in (reader.label, reader.event_id, reader.occurred_at):
        if column is not None and column not in there:
            raise _lacks(reader, column, there)
    check_split_column(application, reader, there)

    def of(column: str | None) -> Column:
        return F.lit(None).cast("string") if column is None else F.col(_quoted(column))

    payload, unread = [], F.lit(False)
    for name, column in column_of.items():
        if column not in there:
            continue
        given, kind = table.schema[column].dataType, fields[name]
        keeps = given == kind or (isinstance(kind, T.BinaryType) and isinstance(given, T.StringType))
        value = of(column) if keeps else of(column).try_cast(kind)
        payload.append(value.alias(name))
        if not keeps:
            unread = unread | (value.isNull() & of(column).isNotNull())
    if MALFORMED in there:
        malformed = of(MALFORMED)
    else:
        originals = [of(column) for column in dict.fromkeys(column_of.values()) if column in there]
        malformed = F.when(unread, F.to_json(F.struct(*originals)))
    return table.select(
        *payload,
        *_row(
            label=of(reader.label).cast("string"),
            event_id=of(reader.event_id).cast("string"),
            occurred_at=of(reader.occurred_at),
            split_by=of(by if by in there else None),
            malformed=malformed,
            # A byte of Parquet may hold many rows, so that those of a part would be numbered into the next one.
            block="_metadata.row_index" if isinstance(reader, Parquet) else "_metadata.file_block_start",
        ),
    )


def _csv(
    spark: SparkSession, application: Application, reader: Csv, files: _Files, wanted: Mapping[str, T.DataType]
) -> DataFrame:
    for column, kind in wanted.items():
        if isinstance(kind, T.ArrayType):
            raise ConfigurationError(
                f"the source {reader.path} fills the list {column!r} of {application.name}, and a cell is no list",
                "use JsonLines or Parquet, or give the event a field for each column",
            )
    form = dict(files.options) | {
        "sep": reader.separator,
        "header": str(reader.header).lower(),
        "escape": '"',
    }  # RFC 4180
    form["multiLine"] = str(reader.multiline).lower()
    names: list[str] = next(filter(None, (spark.read.options(**form).csv(some).columns for some in files.alike)), [])
    columns = [T.StructField(name, wanted.get(name, T.StringType())) for name in names]
    # Spark gives a column without a name one of its own, which a comparison with the header would not find there.
    named = reader.header and not any(re.fullmatch(r"_c\d+", name) for name in names)
    schema = T.StructType([*columns, T.StructField(MALFORMED, T.StringType())])
    return _permissive(spark, form).option("enforceSchema", str(not named).lower()).schema(schema).csv(files.paths)


def _parquet(spark: SparkSession, files: _Files) -> DataFrame:
    # Spark has no times in nanoseconds, which pandas writes: they are read as numbers and divided.
    spark.conf.set("spark.sql.legacy.parquet.nanosAsLong", "true")
    found = spark.read.options(**files.options).parquet(*files.alike[0])
    addresses = found.inputFiles()
    table = spark.read.options(**files.options).schema(found.schema).parquet(*files.paths)
    return table.withColumns(
        {
            name: F.timestamp_micros(F.expr(f"{_quoted(name)} div 1000"))
            for name in (_NANOSECONDS.findall(_parquet_schema(spark, addresses[0])) if addresses else ())
        }
    )


def _parquet_schema(spark: SparkSession, file: str) -> str:
    jvm = spark._jvm
    path = jvm.org.apache.hadoop.fs.Path(jvm.java.net.URI(file))
    conf = spark._jsparkSession.sessionState().newHadoopConf()
    hadoop = jvm.org.apache.parquet.hadoop
    opened = hadoop.ParquetFileReader.open(hadoop.util.HadoopInputFile.fromPath(path, conf))
    try:
        return str(opened.getFooter().getFileMetaData().getSchema().toString())
    finally:
        opened.close()


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


def check_split_column(application: Application, reader: Reader, there: Sequence[str]) -> None:
    """Raises: BadInput where the splits are made by a column that is none of the event's fields nor of `there`."""
    by, pinned = _split_column(application), getattr(reader, "split", None) is not None
    if by is not None and by not in there and (application.splits.grouped or not pinned):
        raise _lacks(reader, by, there or ["only the event's fields"])


def _lacks(reader: Reader, column: str, there: Sequence[str]) -> BadInput:
    named = ", ".join(name for name in there if name != MALFORMED)
    return BadInput(
        f"the source {reader.path} has no column {column!r}; it has {named}",
        "name the file's column in the source's `columns`, `label`, `event_id` or `occurred_at`, or in `splits`",
    )


def _quoted(column: str) -> str:
    return f"`{column.replace('`', '``')}`"


def _escaped(name: str) -> str:
    """Spark takes every path for a glob."""
    return re.sub(r"([{}\[\]*?\\])", r"\\\1", name)
