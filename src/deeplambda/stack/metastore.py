"""The Hive metastore, from pyspark's jars, with its tables in MariaDB."""

from pathlib import Path
from xml.sax.saxutils import escape

from deeplambda.config import Settings, host_of, port_of
from deeplambda.jvm.commands import java_command
from deeplambda.jvm.files import write_private
from deeplambda.jvm.ivy import pyspark_jars
from deeplambda.jvm.jars import component_jars, spark_jars
from deeplambda.jvm.java_sources import compiled_jar
from deeplambda.jvm.log4j import console_logging

_LOG_LEVELS = {"org.apache.hadoop.hive.metastore.HiveMetaStore": "info", "DataNucleus": "error"}
HEAP_MB = 384


def prepare(settings: Settings) -> None:
    """Write the metastore's configuration, before each of its starts."""
    folder = _folder(settings)
    write_private(folder / "hive-site.xml", hive_site(settings))
    write_private(folder / "hive-log4j2.properties", console_logging(_LOG_LEVELS))


def command(settings: Settings) -> list[str]:
    folder = _folder(settings)
    classes = compiled_jar(Path(__file__).with_name("java"), settings)
    return java_command(
        "org.apache.hadoop.hive.metastore.HiveMetaStore",
        [
            folder,
            classes,
            f"{pyspark_jars()}/*",
            *spark_jars(settings),
            *component_jars(settings, "metastore"),
        ],
        heap_mb=HEAP_MB,
        scratch=folder / "tmp",
        properties={"deeplambda.metastore.host": settings.listen_host or host_of(settings.metastore_uri)},
        arguments=["-p", str(port_of(settings.metastore_uri))],
    )


def hive_site(settings: Settings) -> str:
    """hive-site.xml. It reaches S3 because it makes the folder of each new database and table."""
    values = {
        # Connector/J asks MariaDB's information schema for a column that only MySQL's has. Without the second option
        # the metastore takes information_schema.PARTITIONS for its own table and does not create it.
        "javax.jdo.option.ConnectionURL": (
            f"jdbc:mariadb://{settings.mysql_address}/metastore?useMysqlMetadata=true&nullDatabaseMeansCurrent=true"
            "&allowPublicKeyRetrieval=true"  # how MySQL 8 takes a password without TLS
        ),
        "javax.jdo.option.ConnectionDriverName": "org.mariadb.jdbc.Driver",
        "javax.jdo.option.ConnectionUserName": "metastore",
        "javax.jdo.option.ConnectionPassword": settings.mysql_metastore_password.get_secret_value(),
        "datanucleus.schema.autoCreateAll": "true",
        "datanucleus.connectionPoolingType": "HikariCP",  # BoneCP, the default, is not among pyspark's jars
        "datanucleus.connectionPool.maxPoolSize": "4",
        "hive.metastore.schema.verification": "false",
        # Iceberg knows which changes of a column its rows bear; the metastore refuses each of a struct, such as that
        # of a model within the event which gets a further field.
        "hive.metastore.disallow.incompatible.col.type.changes": "false",
        "hive.metastore.warehouse.dir": f"s3a://{settings.s3_bucket}/hive",
        "hive.metastore.server.min.threads": "4",
        "hive.metastore.server.max.threads": "64",
        "hive.async.log.enabled": "false",
        "hadoop.tmp.dir": str(_folder(settings) / "tmp"),
        "fs.s3a.access.key": settings.s3_access_key,
        "fs.s3a.secret.key": settings.s3_secret_key.get_secret_value(),
        "fs.s3a.endpoint.region": settings.s3_region,
        "fs.s3a.path.style.access": "true",
    }
    if settings.s3_endpoint:
        values["fs.s3a.endpoint"] = settings.s3_endpoint
    rows = (
        f"  <property><name>{name}</name><value>{escape(value)}</value></property>" for name, value in values.items()
    )
    return "<configuration>\n" + "\n".join(rows) + "\n</configuration>\n"


def _folder(settings: Settings) -> Path:
    return settings.data_dir / "metastore"
