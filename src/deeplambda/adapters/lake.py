"""The lake: Iceberg tables in a Hive metastore, data on S3, read and written by Spark.

Every session has the catalog `lake`. Credentials reach the JVM by its environment, so no command line shows them.
"""

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema, from_arrow_type, to_arrow_schema
from pyspark.sql.types import ArrayType, DataType, MapType, StructType
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from deeplambda.application import Application, payload_schema
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.fields import compatible
from deeplambda.jvm.cds import as_setting, java_options
from deeplambda.jvm.files import write_private
from deeplambda.jvm.jars import spark_jars
from deeplambda.records.horizon import Horizon
from deeplambda.records.predictions import SEEN_SCHEMA, VIEW_SCHEMA


def _columns(schema: pa.Schema) -> str:
    """An Arrow schema as the columns of a CREATE TABLE."""
    return ", ".join(
        f"`{field.name}` {_sql_type(field.dataType)}{'' if field.nullable else ' NOT NULL'}"
        for field in from_arrow_schema(schema)
    )


def _sql_type(kind: DataType) -> str:
    """As `simpleString`, which leaves out that a struct's field is required."""
    if isinstance(kind, StructType):
        fields = (f"`{f.name}`: {_sql_type(f.dataType)}{'' if f.nullable else ' NOT NULL'}" for f in kind)
        return f"struct<{', '.join(fields)}>"
    if isinstance(kind, ArrayType):
        return f"array<{_sql_type(kind.elementType)}>"
    if isinstance(kind, MapType):
        return f"map<{_sql_type(kind.keyType)}, {_sql_type(kind.valueType)}>"
    return str(kind.simpleString())


_POSITION = "kafka_partition INT, kafka_offset BIGINT, kafka_timestamp TIMESTAMP"  # optional in Spark's Kafka source

_BUCKETS = "bucket(8, event_id)"  # as many as the gateway has slots; each append makes a file of each

TABLES: Mapping[str, tuple[str, str]] = {
    # name: (columns, further clauses)
    "examples": (
        "event_id STRING NOT NULL, split STRING NOT NULL, {payload}, label STRING, source STRING NOT NULL, "
        "source_sha256 STRING NOT NULL, code_version STRING NOT NULL, ingested_at TIMESTAMP NOT NULL, "
        "corrects TIMESTAMP",  # of an earlier row of the same id, when that was ingested
        "PARTITIONED BY (split)",
    ),
    "quarantine": (
        "source STRING NOT NULL, source_sha256 STRING NOT NULL, row BIGINT NOT NULL, reason STRING NOT NULL, "
        "detail STRING NOT NULL, record BINARY, quarantined_at TIMESTAMP NOT NULL",
        "",
    ),
    "events": (
        f"event_id STRING, {_POSITION}, value BINARY, archived_at TIMESTAMP NOT NULL",
        "PARTITIONED BY (days(kafka_timestamp))",
    ),
    "labels": (f"event_id STRING, label STRING, {_POSITION}, archived_at TIMESTAMP NOT NULL", ""),
    "predictions": (_columns(VIEW_SCHEMA), f"PARTITIONED BY ({_BUCKETS})"),
    "staged_predictions": (
        f"{_columns(SEEN_SCHEMA)}, recomputation STRING NOT NULL, events_snapshot BIGINT NOT NULL, "
        "span_events BIGINT NOT NULL, span INT NOT NULL",
        "PARTITIONED BY (recomputation, events_snapshot, span_events, span)",
    ),
    "models": (
        "version INT NOT NULL, run STRING NOT NULL, created_at TIMESTAMP NOT NULL, dataset STRING NOT NULL, "
        "snapshot BIGINT NOT NULL, code_version STRING NOT NULL, weights_sha256 STRING NOT NULL, "
        "parameters BIGINT NOT NULL, hyperparameters STRING NOT NULL, card STRING NOT NULL",
        "",
    ),
    "model_metrics": (
        "version INT NOT NULL, split STRING NOT NULL, name STRING NOT NULL, value DOUBLE NOT NULL, epoch INT, "
        "recorded_at TIMESTAMP NOT NULL",
        "",
    ),
    "data_quality": (
        "subject STRING NOT NULL, day DATE NOT NULL, ingest STRING, snapshot BIGINT, dimension STRING NOT NULL, "
        "measure STRING NOT NULL, field STRING, value DOUBLE NOT NULL, rows BIGINT NOT NULL, "
        "measured_at TIMESTAMP NOT NULL",
        "",
    ),
    "withdrawals": (  # topic: events or labels
        "withdrawal STRING NOT NULL, topic STRING NOT NULL, event_id STRING, kafka_partition INT NOT NULL, "
        "kafka_offset BIGINT NOT NULL, withdrawn_at TIMESTAMP NOT NULL, withdrawn_by STRING NOT NULL, "
        "why STRING NOT NULL",
        "",
    ),
    "verdicts": (  # a decision without a comparison is one row, whose columns of comparisons are null
        "decision STRING NOT NULL, kind STRING NOT NULL, version INT NOT NULL, champion INT, at TIMESTAMP NOT NULL, "
        "who STRING, why STRING, reason STRING, figures STRING, split STRING, against INT, role STRING, metric STRING, "
        "slice STRING, rows BIGINT, candidate DOUBLE, other DOUBLE, difference DOUBLE, low DOUBLE, high DOUBLE, "
        "p DOUBLE, test STRING, refused BOOLEAN",
        "",
    ),
}


BUCKETED_JOINS: Mapping[str, str] = {
    "spark.sql.iceberg.planning.preserve-data-grouping": "true",
    "spark.sql.sources.v2.bucketing.enabled": "true",
    "spark.sql.sources.v2.bucketing.shuffle.enabled": "true",
}
"""Of a session: what is joined with `predictions` by event id is brought to its buckets, which stay where they are.

Not of every session: one task then reads all that a scan finds of a partition, such as a day of `events`.
"""

_PROPERTIES: Mapping[str, str] = {
    "format-version": "2",
    # Each commit writes the whole of a table's metadata anew: a commit every 5 s would leave gigabytes a day.
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "60",
    "write.metadata.compression-codec": "gzip",
    "write.target-file-size-bytes": str(128 * 2**20),
    # A task holds a row group until it is written, and by default looks at its size after a hundred rows at the
    # earliest: of the largest records that is 1.6 GB, three times what the archive has.
    "write.parquet.row-group-size-bytes": str(32 * 2**20),
    "write.parquet.row-group-check-min-record-count": "1",
}
_WITH_PROPERTIES = "TBLPROPERTIES (" + ", ".join(f"'{name}' = '{value}'" for name, value in _PROPERTIES.items()) + ")"


def spark_session(settings: Settings, name: str, conf: Mapping[str, str] | None = None) -> SparkSession:
    """The process's Spark session, with the catalog `lake`; `conf` adds to or overrides what is set here."""
    os.environ["AWS_ACCESS_KEY_ID"] = settings.s3_access_key
    os.environ["AWS_SECRET_ACCESS_KEY"] = settings.s3_secret_key.get_secret_value()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    if not settings.on_spark_cluster:
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # else Spark binds to an address of the network
    os.environ.pop("SPARK_HOME", None)  # the jars of another Spark version would not match
    classpath = ":".join(str(jar) for jar in spark_jars(settings))
    scratch = settings.data_dir / "spark"
    scratch.mkdir(parents=True, exist_ok=True)
    options = {
        "spark.master": settings.spark_master,
        "spark.driver.host": settings.spark_driver_host,
        "spark.driver.bindAddress": "0.0.0.0" if settings.on_spark_cluster else "127.0.0.1",  # noqa: S104
        "spark.driver.memory": "1g",
        "spark.driver.extraClassPath": classpath,
        "spark.executor.extraClassPath": classpath,
        "spark.driver.extraJavaOptions": as_setting((*java_options(settings), f"-Djava.io.tmpdir={scratch}")),
        "spark.local.dir": str(scratch),
        "spark.hadoop.hadoop.tmp.dir": str(scratch),
        "spark.hadoop.fs.s3a.buffer.dir": str(scratch / "s3a"),  # the default's expression stumbles over a space
        "spark.ui.enabled": "false",
        "spark.sql.ui.explainMode": "simple",  # each query writes its plan down for the page that is off
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "4",  # of streams; elsewhere Spark begins with more and joins small ones
        "spark.sql.adaptive.coalescePartitions.initialPartitionNum": "400" if settings.on_spark_cluster else "8",
        "spark.python.daemon.module": "deeplambda.service.spark_daemon",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        # What a Python worker holds at once; a model's activations are many times as large as its input.
        "spark.sql.execution.arrow.maxRecordsPerBatch": "500",
        "spark.sql.execution.arrow.maxBytesPerBatch": "64m",
        "spark.sql.warehouse.dir": settings.warehouse,
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "hive",
        "spark.sql.catalog.lake.uri": settings.metastore_uri,
        "spark.sql.catalog.lake.warehouse": settings.warehouse,
        "spark.sql.catalog.lake.use-nullable-query-schema": "false",  # a table replaced by a query keeps NOT NULL
        "spark.hadoop.hive.metastore.uris": settings.metastore_uri,
        "spark.hadoop.iceberg.engine.hive.lock-enabled": "false",  # the metastore has no lock tables
        "spark.hadoop.fs.s3a.aws.credentials.provider": (
            "software.amazon.awssdk.auth.credentials.EnvironmentVariableCredentialsProvider"
        ),
        "spark.hadoop.fs.s3a.endpoint.region": settings.s3_region,
        # The SDK has tried these again already; seven times that is minutes until a full disk is told.
        "spark.hadoop.fs.s3a.retry.http.5xx.errors": "false",
    }
    if settings.s3_endpoint:
        options |= {
            "spark.hadoop.fs.s3a.endpoint": settings.s3_endpoint,
            "spark.hadoop.fs.s3a.path.style.access": "true",
            "spark.hadoop.fs.s3a.connection.ssl.enabled": str(settings.s3_endpoint.startswith("https")).lower(),
        }
    if settings.on_spark_cluster:
        options |= cluster_options(settings, scratch)
    given = dict(pair.split("=", 1) for pair in settings.spark_options.split())
    builder = SparkSession.builder.appName(f"deeplambda {name}")
    for key, value in (options | dict(conf or {}) | given).items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("WARN")
    return session


def cluster_options(settings: Settings, scratch: Path) -> dict[str, str]:
    """Further options for executors on a cluster; secrets are written to a file that Spark reads.

    Source: Spark's security guide, on authentication of a standalone cluster.
    """
    secrets = {
        # Spark redacts both in its pages and logs, because of their names.
        "spark.executorEnv.AWS_SECRET_ACCESS_KEY": settings.s3_secret_key.get_secret_value(),
        "spark.authenticate.secret": settings.spark_secret.get_secret_value(),
    }
    authenticate = str(bool(settings.spark_secret.get_secret_value())).lower()
    lines = "".join(f"{name} {value}\n" for name, value in secrets.items() if value)
    os.environ["SPARK_CONF_DIR"] = str(write_private(scratch / "conf" / "spark-defaults.conf", lines).parent)
    return {
        "spark.authenticate": authenticate,
        "spark.network.crypto.enabled": authenticate,
        "spark.executor.memory": "1g",
        "spark.executor.extraJavaOptions": as_setting(java_options(settings)),
        "spark.executorEnv.AWS_ACCESS_KEY_ID": settings.s3_access_key,
        "spark.executorEnv.PET_LOG_DIR": os.devnull,  # torchrun's: else each run leaves a folder of its own
    }


@retry(  # two processes may create or change one table at the same moment: the slower one then finds it done
    retry=retry_if_exception_type((AnalysisException, Py4JJavaError)),
    stop=stop_after_attempt(4),
    wait=wait_random_exponential(max=2),
)
def create_tables(spark: SparkSession, application: Application) -> None:
    """Create the application's Iceberg tables that are missing, and bring those that are there to today's form.

    `examples` follows the event's schema; `predictions` gets the columns, the buckets and the order that it lacks.
    Older snapshots keep the columns and files that they were written with. Raises: ConfigurationError when rows do not
    fit the event's schema.
    """
    payload = payload_schema(application.event)
    spark.sql(f"CREATE NAMESPACE IF NOT EXISTS lake.{application.name}")
    known = {row.tableName for row in spark.sql(f"SHOW TABLES IN lake.{application.name}").collect()}
    for table, (columns, clauses) in TABLES.items():
        if table not in known:
            spark.sql(
                f"CREATE TABLE IF NOT EXISTS lake.{application.name}.{table} "
                f"({columns.format(payload=_columns(payload))}) "
                f"USING iceberg {clauses} {_WITH_PROPERTIES}"
            )
    examples, predictions = (f"lake.{application.name}.{table}" for table in ("examples", "predictions"))
    properties = {row.key for row in spark.sql(f"SHOW TBLPROPERTIES {predictions}").collect()}
    if not _PROPERTIES.keys() <= properties:
        for table in TABLES:  # they were made before these settings were
            spark.sql(f"ALTER TABLE lake.{application.name}.{table} SET {_WITH_PROPERTIES}")
    if not spark.table(examples).schema["label"].nullable:  # made before rows without a label were kept
        spark.sql(f"ALTER TABLE {examples} ALTER COLUMN label DROP NOT NULL")
    if "corrects" not in spark.table(examples).columns:  # made before corrections were kept
        spark.sql(f"ALTER TABLE {examples} ADD COLUMN corrects TIMESTAMP")
    for name, schema in (("predictions", VIEW_SCHEMA), ("staged_predictions", SEEN_SCHEMA)):
        there = set(spark.table(f"lake.{application.name}.{name}").columns)
        if lacking := [field for field in schema if field.name not in there]:
            spark.sql(f"ALTER TABLE lake.{application.name}.{name} ADD COLUMNS ({_columns(pa.schema(lacking))})")
    if not any(row.data_type == _BUCKETS for row in spark.sql(f"DESCRIBE TABLE {predictions}").collect()):
        spark.sql(f"ALTER TABLE {predictions} ADD PARTITION FIELD {_BUCKETS}")
    if "sort-order" not in properties:  # who asks for the newest, such as MySQL's recent tables, reads few files
        spark.sql(f"ALTER TABLE {predictions} WRITE ORDERED BY occurred_at")
    _evolve(spark, examples, payload)


def _evolve(spark: SparkSession, table: str, payload: pa.Schema) -> None:
    own = {column.split()[0] for column in TABLES["examples"][0].split(", ")}
    found = to_arrow_schema(StructType([field for field in spark.table(table).schema if field.name not in own]))
    if obstacles := compatible(found, payload):
        raise ConfigurationError(
            f"the rows of {table} do not fit the event's schema: {'; '.join(obstacles)}",
            "change the event as said, or give the application another name, which begins with tables of its own",
        )
    changes, widened = _changes(list(found), list(payload), "")
    for change in changes:
        spark.sql(f"ALTER TABLE {table} {change}")
    if widened:
        _widen(spark, table, widened)


def _changes(old: list[pa.Field], new: list[pa.Field], inside: str) -> tuple[list[str], list[str]]:
    """Clauses of ALTER TABLE that turn `old` into `new`, and the columns whose integers become floats."""
    there = {field.name: field for field in old}
    clauses, widened = [], []
    for field in new:
        path, before = f"{inside}`{field.name}`", there.get(field.name)
        if before is None:
            clauses.append(f"ADD COLUMN {path} {_sql_type(from_arrow_type(field.type))}")
            continue
        if field.nullable and not before.nullable:
            clauses.append(f"ALTER COLUMN {path} DROP NOT NULL")
        if pa.types.is_struct(field.type):
            deeper, inner = _changes(list(before.type), list(field.type), f"{path}.")
            clauses += deeper
            widened += inner
        elif pa.types.is_integer(before.type) and pa.types.is_floating(field.type):
            widened.append(path)
    return clauses, widened


def _widen(spark: SparkSession, table: str, columns: list[str]) -> None:
    """Write the rows again with doubles, for Iceberg widens no integer to one; snapshots from before stay as they are.

    Raises: ConfigurationError for a field within a struct, which cannot be replaced alone.
    """
    if within := [path for path in columns if "`.`" in path]:
        raise ConfigurationError(
            f"field {within[0].replace('`', '')!r} of {table} cannot become a float within its model",
            "leave its type, and add a field of another name beside it",
        )
    rows = spark.table(table)
    selected = ", ".join(
        f"CAST(`{name}` AS DOUBLE) AS `{name}`" if f"`{name}`" in columns else f"`{name}`" for name in rows.columns
    )
    spark.sql(
        f"REPLACE TABLE {table} USING iceberg {TABLES['examples'][1]} {_WITH_PROPERTIES} "
        f"AS SELECT {selected} FROM {table}"
    )


def current_snapshot(spark: SparkSession, table: str) -> int | None:
    """The table's newest Iceberg snapshot id; None while it is empty."""
    newest = spark.sql(f"SELECT snapshot_id FROM {table}.refs WHERE name = 'main'").first()
    return newest[0] if newest else None


SNAPSHOT_OPTION = "snapshot-property.deeplambda-run"
"""A write with this option names its snapshot, so that it can be told from those of other writers."""


class Written(NamedTuple):
    """The snapshot that a write made, and the one that it built on."""

    snapshot: int
    parent: int | None


def written_by(spark: SparkSession, table: str, run: str) -> Written | None:
    """What the write with `SNAPSHOT_OPTION` set to `run` made; None when it wrote nothing."""
    of_run = f"summary['deeplambda-run'] = '{run}'"
    found = spark.sql(f"SELECT snapshot_id, parent_id FROM {table}.snapshots WHERE {of_run}").first()
    return Written(*found) if found else None


class SnapshotSize(NamedTuple):
    """What a table holds. bytes: of its data files, which are compressed."""

    rows: int
    files: int
    bytes: int


def snapshot_size(spark: SparkSession, table: str, snapshot: int) -> SnapshotSize:
    """By the totals that Iceberg keeps with each snapshot: no file is read."""
    summary = spark.sql(f"SELECT summary FROM {table}.snapshots WHERE snapshot_id = {snapshot}").collect()[0][0]
    totals = (int(summary[f"total-{what}"]) for what in ("records", "data-files", "files-size"))
    return SnapshotSize(*totals)


@contextmanager
def held(spark: SparkSession, table: str, snapshot: int, days: int) -> Iterator[None]:
    """Keep a snapshot's files while they are read, however long that takes: by a tag, which ages after a crash."""
    tag = f"read-{secrets.token_hex(4)}"
    tag_snapshot(spark, table, tag, snapshot, days)
    try:
        yield
    finally:
        change_tag(spark, table, f"DROP TAG IF EXISTS `{tag}`")


def tag_snapshot(spark: SparkSession, table: str, tag: str, snapshot: int, days: int) -> None:
    """Name a snapshot, whose files are kept for so many days; what had the name before has it no more."""
    age = now() - (committed_at(spark, table, snapshot) or now())  # from when Iceberg counts
    kept = max(0, age.days) + days
    change_tag(spark, table, f"CREATE OR REPLACE TAG `{tag}` AS OF VERSION {snapshot} RETAIN {kept} DAYS")


@contextmanager
def bucketed_joins(spark: SparkSession) -> Iterator[None]:
    """Have the session join as `BUCKETED_JOINS` says, while this lasts."""
    for name, value in BUCKETED_JOINS.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name in BUCKETED_JOINS:
            spark.conf.unset(name)


@retry(  # Iceberg does not try a change of tags again that another writer's commit has overtaken
    retry=retry_if_exception_type((PySparkException, Py4JJavaError)),
    stop=stop_after_attempt(8),
    wait=wait_random_exponential(max=2),
    reraise=True,
)
def change_tag(spark: SparkSession, table: str, clause: str) -> None:
    """Create or drop a tag. clause: of ALTER TABLE; it may be carried out twice."""
    spark.sql(f"ALTER TABLE {table} {clause}")


def has_snapshot(spark: SparkSession, table: str, snapshot: int) -> bool:
    """Whether the table still has a snapshot: upkeep removes those that nothing names."""
    return committed_at(spark, table, snapshot) is not None


def committed_at(spark: SparkSession, table: str, snapshot: int) -> datetime | None:
    """When a snapshot was committed; None of one that the table no longer has."""
    found = spark.sql(f"SELECT committed_at FROM {table}.snapshots WHERE snapshot_id = {snapshot}").first()
    return found.committed_at.astimezone() if found else None


def commits(spark: SparkSession, table: str) -> dict[int, datetime]:
    """When each snapshot was committed that the table still has."""
    rows = spark.sql(f"SELECT snapshot_id, committed_at FROM {table}.snapshots").collect()
    return {row.snapshot_id: row.committed_at.astimezone() for row in rows}


def read_snapshot(spark: SparkSession, table: str, snapshot: int) -> DataFrame:
    """The table as of a snapshot."""
    return spark.read.option("versionAsOf", snapshot).table(table)


def lacking_columns(spark: SparkSession, application: str, horizon: Horizon) -> frozenset[str]:
    """Columns of the batch view that the horizon's snapshot was written without."""
    if horizon.snapshot is None:
        return frozenset()
    there = read_snapshot(spark, f"lake.{application}.predictions", horizon.snapshot).columns
    return frozenset(VIEW_SCHEMA.names) - set(there)
