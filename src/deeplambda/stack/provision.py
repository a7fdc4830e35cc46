"""What the platform expects to find in its stores: topics, the bucket, databases, tables and accounts.

Every function is idempotent. `deeplambda up` calls each as soon as its store answers, at every start; in containers the
service `provision` calls all of them.
"""

from typing import Any

import pymysql
from botocore.exceptions import ClientError
from pymysql.cursors import Cursor

from deeplambda.config import Settings, host_of, port_of
from deeplambda.errors import ConfigurationError

CONNECTIONS = {"analyst": 60, "queries": 20, "reader": 80}
"""At once, of people and dashboards, of what the query service keeps, and of the services that ask for analysts: of the
server's 200 the others are left to what writes."""
_VIEWS_WRITE = {"realtime_predictions", "shown_horizons", "metrics"}

# The metastore makes its own tables but for these of its transactions, of which it clears a database that is dropped.
# Source: Apache Hive 2.3, hive-txn-schema-2.3.0.mysql.sql.
_METASTORE_TABLES = {
    "TXN_COMPONENTS": "TC_TXNID BIGINT, TC_DATABASE VARCHAR(128) NOT NULL, TC_TABLE VARCHAR(128), "
    "TC_PARTITION VARCHAR(767), TC_OPERATION_TYPE CHAR(1) NOT NULL",
    "COMPLETED_TXN_COMPONENTS": "CTC_TXNID BIGINT NOT NULL, CTC_DATABASE VARCHAR(128) NOT NULL, "
    "CTC_TABLE VARCHAR(256), CTC_PARTITION VARCHAR(767)",
    "COMPACTION_QUEUE": "CQ_ID BIGINT PRIMARY KEY, CQ_DATABASE VARCHAR(128) NOT NULL, CQ_TABLE VARCHAR(128) NOT NULL, "
    "CQ_PARTITION VARCHAR(767), CQ_STATE CHAR(1) NOT NULL, CQ_TYPE CHAR(1) NOT NULL, CQ_TBLPROPERTIES VARCHAR(2048), "
    "CQ_WORKER_ID VARCHAR(128), CQ_START BIGINT, CQ_RUN_AS VARCHAR(128), CQ_HIGHEST_TXN_ID BIGINT, "
    "CQ_META_INFO VARBINARY(2048), CQ_HADOOP_JOB_ID VARCHAR(32)",
    "COMPLETED_COMPACTIONS": "CC_ID BIGINT PRIMARY KEY, CC_DATABASE VARCHAR(128) NOT NULL, "
    "CC_TABLE VARCHAR(128) NOT NULL, CC_PARTITION VARCHAR(767), CC_STATE CHAR(1) NOT NULL, CC_TYPE CHAR(1) NOT NULL, "
    "CC_TBLPROPERTIES VARCHAR(2048), CC_WORKER_ID VARCHAR(128), CC_START BIGINT, CC_END BIGINT, "
    "CC_RUN_AS VARCHAR(128), CC_HIGHEST_TXN_ID BIGINT, CC_META_INFO VARBINARY(2048), CC_HADOOP_JOB_ID VARCHAR(32)",
}


def kafka_topics(settings: Settings) -> None:
    """Create the topics that are missing."""
    from deeplambda.adapters.kafka import create_topics

    create_topics(settings)


def s3_bucket(settings: Settings) -> None:
    """Create the bucket if it is missing, in the region that the settings name.

    Raises: ConfigurationError where it may not be made, or is somebody else's.
    """
    from deeplambda.adapters.s3 import has_bucket, s3_client, s3_remedy

    client, bucket = s3_client(settings), settings.s3_bucket
    place: Any = {"CreateBucketConfiguration": {"LocationConstraint": settings.s3_region}}
    if settings.s3_region == "us-east-1":  # S3's first region, and the only one that may not be named
        place = {}
    try:
        if not has_bucket(client, bucket):
            client.create_bucket(Bucket=bucket, **place)
    except ClientError as exc:
        if exc.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":  # another run was faster
            raise ConfigurationError(f"S3 gives no bucket {bucket}: {exc}", s3_remedy(settings)) from exc
    finally:
        client.close()


def mysql_accounts(settings: Settings) -> None:
    """Create databases, tables and accounts; only root changes tables, every other account has the least it needs."""
    from deeplambda.adapters.mysql import engine
    from deeplambda.state.tables import HIDDEN_FROM_ANALYSTS, create_schema

    passwords = {
        "metastore": settings.mysql_metastore_password,
        "platform": settings.mysql_platform_password,
        "views": settings.mysql_views_password,
        "queries": settings.mysql_queries_password,
        "reader": settings.mysql_reader_password,
        "analyst": settings.analyst_password,
        "superset": settings.mysql_superset_password,
    }
    if not settings.mysql_superset_password.get_secret_value():
        passwords.pop("superset")  # not used here
    if without := [account for account, password in passwords.items() if not password.get_secret_value()]:
        raise ConfigurationError(f"no password for MySQL's account {', '.join(without)}", "set it before provisioning")
    with (
        pymysql.connect(
            host=host_of(settings.mysql_address),
            port=port_of(settings.mysql_address),
            user="root",
            password=settings.mysql_root_password.get_secret_value(),
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{settings.mysql_database}` CHARACTER SET utf8mb4")
        # The metastore's own table definitions index columns longer than utf8mb4 has room for.
        cursor.execute("CREATE DATABASE IF NOT EXISTS metastore CHARACTER SET latin1 COLLATE latin1_bin")
        create_schema(engine(settings, "root"))
        for account, password in passwords.items():
            cursor.execute(f"CREATE USER IF NOT EXISTS {account}@'%%' IDENTIFIED BY %s", (password.get_secret_value(),))
            cursor.execute(f"ALTER USER {account}@'%%' IDENTIFIED BY %s", (password.get_secret_value(),))
        for account, most in CONNECTIONS.items():
            cursor.execute(f"ALTER USER {account}@'%' WITH MAX_USER_CONNECTIONS {most}")
        cursor.execute("GRANT ALL ON metastore.* TO metastore@'%'")
        if "superset" in passwords:
            cursor.execute("CREATE DATABASE IF NOT EXISTS superset CHARACTER SET utf8mb4")
            cursor.execute("GRANT ALL ON superset.* TO superset@'%'")
        for table, columns in _METASTORE_TABLES.items():
            cursor.execute(f"CREATE TABLE IF NOT EXISTS metastore.{table} ({columns})")
        cursor.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{settings.mysql_database}`.* TO platform@'%'")
        cursor.execute(f"GRANT SELECT, INSERT, UPDATE ON `{settings.mysql_database}`.queries TO queries@'%'")
        for table in _tables(cursor, settings.mysql_database):
            cursor.execute(f"GRANT {views_rights(table)} ON `{settings.mysql_database}`.`{table}` TO views@'%'")
            if table not in HIDDEN_FROM_ANALYSTS:
                cursor.execute(f"GRANT SELECT ON `{settings.mysql_database}`.`{table}` TO analyst@'%', reader@'%'")


def views_rights(table: str) -> str:
    """What the account `views` may do with `table`."""
    if table in _VIEWS_WRITE or table.startswith("recent_"):
        return "SELECT, INSERT, UPDATE, DELETE"
    return {"outbox": "SELECT, UPDATE", "live_answers": "SELECT, INSERT"}.get(table, "SELECT")


def _tables(cursor: Cursor, database: str) -> list[str]:
    cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = %s", (database,))
    return sorted(name for (name,) in cursor.fetchall())
