"""The gateway's Spark session: small, in UTC, both stores as catalogs, read-only checks in parser and analyser.

`lake` and `spark_catalog` are the Iceberg tables (the second also holds the union views), `mysql` is MySQL as an
analyst sees it.
"""

import os
from pathlib import Path

from pyspark.sql import SparkSession

from deeplambda.adapters.lake import BUCKETED_JOINS, spark_session
from deeplambda.config import Settings
from deeplambda.jvm.cds import as_setting, java_options
from deeplambda.jvm.files import own_folder
from serving_layer.hive_gateway.jar import gateway_jar

QUERY_TIMEOUT_S = 110
HEAP_MB = 1024  # the most it may take; it gives back what a query no longer needs
_PASSWORD_VARIABLE = "DEEPLAMBDA_GATEWAY_PASSWORD"  # noqa: S105  # read by AnalystLogin.java
_LOG_LEVELS = {
    "deeplambda.gateway": "INFO",
    "org.apache.hive.service.cli.session.HiveSessionImpl": "OFF",  # misses a folder that it never made
    "org.apache.hive.service.cli.thrift.ThriftCLIService": "ERROR",
    "org.apache.spark.scheduler.DAGScheduler": "ERROR",
    "org.apache.spark.scheduler.TaskSetManager": "OFF",
    "org.apache.spark.sql.hive.thriftserver.SparkExecuteStatementOperation": "OFF",
}


def gateway_session(settings: Settings) -> SparkSession:
    """The session, with this thread trusted to write. Raises: ConfigurationError."""
    os.environ[_PASSWORD_VARIABLE] = settings.analyst_password.get_secret_value()
    os.environ["MALLOC_ARENA_MAX"] = "2"  # glibc keeps an arena for each of the JVM's many threads otherwise
    # Behind Spark's own jars, for the class path has to begin as that of the CDS file does.
    os.environ["SPARK_DIST_CLASSPATH"] = str(gateway_jar(settings))
    folder = own_folder(settings.data_dir / "gateway" / "own")
    spark = spark_session(settings, "gateway", _options(settings, folder))
    # Set in the running JVM, so that no command line shows it; sessions of clients start from this configuration.
    password = settings.mysql_reader_password.get_secret_value()
    spark._jsc.sc().conf().set("spark.sql.catalog.mysql.password", password)
    spark.conf.set("spark.sql.catalog.mysql.password", password)
    _silence_stack_traces(spark)
    trust_this_thread(spark)
    return spark


def trust_this_thread(spark: SparkSession) -> None:
    """Let this Python thread write: the read-only checks pass over the JVM thread that pyspark keeps for it."""
    spark._jvm.deeplambda.gateway.Trusted.trustThisThread()


def _silence_stack_traces(spark: SparkSession) -> None:
    """FrontDoor.java logs a failed statement in one line; Spark itself would log it three times, with stack traces."""
    log4j = spark._jvm.org.apache.logging.log4j
    for name, level in _LOG_LEVELS.items():
        log4j.core.config.Configurator.setLevel(name, log4j.Level.toLevel(level))


def _options(settings: Settings, folder: Path) -> dict[str, str]:
    host, _, port = settings.listening_on(settings.hive_address).rpartition(":")
    java = (
        *java_options(settings),
        "-XX:TieredStopAtLevel=4",  # the gateway lives long enough for the compiler that makes fast code
        "-Duser.timezone=UTC",
        f"-Djava.io.tmpdir={folder}",
        # HiveServer2 asks a fresh HiveConf for this one, which knows only system properties.
        "-Dhive.server2.custom.authentication.class=deeplambda.gateway.AnalystLogin",
    )
    return {
        **BUCKETED_JOINS,  # of the union view: it looks in the whole batch view for each real-time row
        # More slots than cores: one heavy query does not take them all, so others go on.
        "spark.master": "local[8]" if settings.spark_master.startswith("local") else settings.spark_master,
        "spark.scheduler.mode": "FAIR",
        "spark.scheduler.allocation.file": str(Path(__file__).with_name("scheduler.xml")),
        "spark.default.parallelism": "2",
        "spark.sql.shuffle.partitions": "2",
        "spark.driver.memory": f"{HEAP_MB}m",
        "spark.driver.maxResultSize": "64m",
        "spark.memory.fraction": "0.4",  # what sorts and joins may hold stays below what HeapGuard takes for full
        "spark.executor.killOnFatalError.depth": "0",  # a query out of memory must not end the gateway
        "spark.driver.extraJavaOptions": as_setting(java),
        "spark.local.dir": str(folder),
        "spark.deeplambda.gateway.diskLimit": "2g",  # read by DiskGuard.java; half of what a pod may have
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions,"
        "deeplambda.gateway.ReadOnlyExtension",
        "spark.sql.catalogImplementation": "hive",
        "spark.sql.catalog.spark_catalog": "org.apache.iceberg.spark.SparkSessionCatalog",
        "spark.sql.catalog.spark_catalog.type": "hive",
        "spark.sql.catalog.spark_catalog.uri": settings.metastore_uri,
        "spark.sql.catalog.spark_catalog.cache-enabled": "false",
        "spark.sql.catalog.lake.cache-enabled": "false",  # other processes write these tables
        "spark.sql.catalog.mysql": "org.apache.spark.sql.execution.datasources.v2.jdbc.JDBCTableCatalog",
        "spark.sql.catalog.mysql.url": f"jdbc:mysql://{settings.mysql_address}/?connectionTimeZone=UTC"
        f"&connectTimeout=5000&socketTimeout={1000 * (QUERY_TIMEOUT_S + 10)}",
        "spark.sql.catalog.mysql.driver": "com.mysql.cj.jdbc.Driver",
        "spark.sql.catalog.mysql.user": "reader",
        # PlainPredicates.java says which predicates MySQL gets to see; nothing else of a statement goes there.
        "spark.sql.catalog.mysql.pushDownAggregate": "false",
        "spark.sql.catalog.mysql.pushDownTopN": "false",
        "spark.sql.catalog.mysql.pushDownJoin": "false",
        # Each of these two lets a SELECT reach what it should not: files by their path, and the environment.
        "spark.sql.runSQLOnFiles": "false",
        "spark.sql.variable.substitute": "false",
        "spark.sql.thriftServer.queryTimeout": f"{QUERY_TIMEOUT_S}s",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "2000",
        "spark.hadoop.hive.server2.authentication": "CUSTOM",
        "spark.hadoop.hive.server2.enable.doAs": "false",
        "spark.hadoop.hive.server2.thrift.bind.host": host,
        "spark.hadoop.hive.server2.thrift.port": port,
        "spark.hadoop.hive.server2.thrift.max.worker.threads": "64",
        "spark.hadoop.hive.server2.async.exec.threads": "16",
        "spark.hadoop.hive.server2.idle.session.timeout": "1h",
        "spark.hadoop.hive.server2.idle.operation.timeout": "1h",  # a session is not idle while it has any
        "spark.hadoop.hive.server2.session.check.interval": "1m",
        "spark.hadoop.hive.server2.logging.operation.enabled": "false",
        "spark.hadoop.hive.exec.scratchdir": str(folder / "hive"),
        "spark.hadoop.hive.exec.local.scratchdir": str(folder / "hive"),
        # Of each session, for its end deletes the folder.
        "spark.hadoop.hive.downloaded.resources.dir": str(folder / "resources" / "${hive.session.id}"),
        "spark.hadoop.hive.querylog.location": str(folder / "hive"),
    }
