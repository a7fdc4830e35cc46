"""Superset beside the platform: its own tables in MySQL, both stores as the account that only reads, nobody unknown.

Passwords come from files, and into connections at the last moment: an exported database holds none. One process of
many threads and no Redis, so results are cached in a temporary folder, logins are counted in memory, and there are no
alerts, reports or queries in the background.
"""

import os
from pathlib import Path
from typing import Any

import pymysql
from sqlalchemy.engine import URL

pymysql.install_as_MySQLdb()  # where Superset looks up the types of MySQL's columns, whatever driver is used

ACCOUNT = "analyst"
_ADDRESSES = {
    "mysql": os.environ.get("DEEPLAMBDA_MYSQL_ADDRESS", "mysql:3306"),
    "hive": os.environ.get("DEEPLAMBDA_HIVE_ADDRESS", "gateway:10000"),
}
_QUERY_S = 120  # above both stores' own limits, so that they are the ones to say so
_TRUNCATED = "DATE_ADD(CAST(DATE({{col}}) AS DATETIME), INTERVAL {})"


def secret(name: str) -> str:
    """The content of a file of the volume `secrets-superset`."""
    return (Path(os.environ.get("DEEPLAMBDA_SECRETS_DIR", "/secrets")) / f"deeplambda_{name}").read_text()


def at_store(url: URL, account: str, password: str) -> URL:
    """The URL at the address of the platform's store of its kind."""
    host, _, port = _ADDRESSES[url.get_backend_name()].rpartition(":")
    return url.set(username=account, password=password, host=host, port=int(port))


def with_password(url: URL, options: dict[str, Any], *_: object) -> tuple[URL, dict[str, Any]]:
    """Give connections as `analyst` the password; they go to the platform's stores, whatever host their URL names."""
    if url.username == ACCOUNT and url.get_backend_name() in _ADDRESSES:
        url = at_store(url, ACCOUNT, secret("analyst_password"))
    return url, options


def fix_hive(_: object) -> None:
    """Have Superset and PyHive understand Spark; both can be loaded only once Superset is made."""
    from superset_hive import fix_dialect

    fix_dialect()


SECRET_KEY = secret("superset_secret_key")
SQLALCHEMY_DATABASE_URI = at_store(
    URL.create("mysql+pymysql", database="superset", query={"charset": "utf8mb4"}),
    "superset",
    secret("mysql_superset_password"),
).render_as_string(hide_password=False)
SQLALCHEMY_ENGINE_OPTIONS = {"isolation_level": "READ COMMITTED", "pool_pre_ping": True, "pool_recycle": 1800}
DB_CONNECTION_MUTATOR = with_password
FLASK_APP_MUTATOR = fix_hive
ALEMBIC_SKIP_LOG_CONFIG = True  # or nothing is logged any more after the migration

# Superset 6 loses the inner DATE() of its own (its issue 36798): minutes would not be minutes.
TIME_GRAIN_ADDON_EXPRESSIONS = {
    "mysql": {
        "PT1S": _TRUNCATED.format("(HOUR({col})*3600 + MINUTE({col})*60 + SECOND({col})) SECOND"),
        "PT1M": _TRUNCATED.format("(HOUR({col})*60 + MINUTE({col})) MINUTE"),
        "PT1H": _TRUNCATED.format("HOUR({col}) HOUR"),
    }
}

WTF_CSRF_ENABLED = True
PUBLIC_ROLE_LIKE = None
AUTH_USER_REGISTRATION = False
SESSION_COOKIE_SAMESITE = "Strict"
RATELIMIT_STORAGE_URI = "memory://"

SUPERSET_WEBSERVER_TIMEOUT = _QUERY_S
SQLLAB_TIMEOUT = _QUERY_S
ROW_LIMIT = 10_000
DEFAULT_RELATIVE_START_TIME = DEFAULT_RELATIVE_END_TIME = "now"  # "Last day" would end at midnight, before what is live
DATA_CACHE_CONFIG = {
    "CACHE_TYPE": "FileSystemCache",
    "CACHE_DIR": "/tmp/results",  # noqa: S108  # the container's own
    "CACHE_DEFAULT_TIMEOUT": 60,
    "CACHE_THRESHOLD": 500,
}
