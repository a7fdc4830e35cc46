"""Settings: where every part of the platform is found, the same names on one machine and in containers.

Order of precedence, first wins: environment `DEEPLAMBDA_*`, `<data_dir>/stack.env` (written by `deeplambda up`),
secret files `deeplambda_*` in `DEEPLAMBDA_SECRETS_DIR`, by default `<data_dir>/secrets` (mode 0600, made by the first
`deeplambda up` or `docker compose up`), defaults below. The local stack listens on the addresses that its clients
connect to, so a port is named once; in a container a service listens on `listen_host` instead.
"""

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from deeplambda.errors import ConfigurationError

DATA_DIR_NAME = ".deeplambda"
_SETTINGS_REMEDY = "correct it in the environment, in .env or in stack.env; .env.example explains the settings"


def find_data_dir() -> Path:
    """`DEEPLAMBDA_DATA_DIR`, else the nearest `.deeplambda` upwards (as git finds `.git`), else one here."""
    if configured := os.environ.get("DEEPLAMBDA_DATA_DIR"):
        return Path(configured).resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / DATA_DIR_NAME).is_dir():
            return folder / DATA_DIR_NAME
    return here / DATA_DIR_NAME


def port_of(address: str) -> int:
    """The port in `host:port` or in a URL."""
    port = urlsplit(address if "//" in address else f"//{address}").port
    if port is None:
        raise ValueError(f"no port in {address!r}")
    return port


def host_of(address: str) -> str:
    """The host in `host:port` or in a URL."""
    return urlsplit(address if "//" in address else f"//{address}").hostname or ""


class Settings(BaseSettings):
    """Frozen; made by `load_settings()`. Units are in the names."""

    model_config = SettingsConfigDict(env_prefix="DEEPLAMBDA_", frozen=True, extra="ignore")

    data_dir: Path = Field(description="everything the stack writes: data, logs, sockets, secrets")
    cache_dir: Path = Field(
        default=Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deeplambda",
        description="downloaded components, shared by every clone",
    )
    applications_dir: Path = Field(default=Path("examples"), description="where applications are looked for by name")
    applications: tuple[str, ...] = Field(default=("digits",), description="what the long-running services serve")

    listen_host: str | None = Field(
        default=None, description="where services listen, 0.0.0.0 in a container; default: the host of their address"
    )

    kafka_bootstrap: str = "127.0.0.1:9092"
    kafka_security: Literal["PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="with SASL, the mechanism PLAIN as kafka_user"
    )
    kafka_user: str = "platform"
    kafka_password: SecretStr = SecretStr("")
    kafka_producer_password: SecretStr = Field(default=SecretStr(""), description="account `producer`: writes events")
    kafka_host_address: str = Field(
        default="127.0.0.1:9094", description="where clients outside the containers find the broker in one"
    )
    kafka_partitions: int = Field(default=2, ge=1, description="partitions of a new events topic")
    kafka_replication: int = Field(default=1, ge=1)

    mqtt_address: str = "127.0.0.1:1883"
    mqtt_producer_password: SecretStr = Field(default=SecretStr(""), description="account `producer`: publishes events")
    mqtt_bridge_password: SecretStr = Field(default=SecretStr(""), description="account `bridge`: reads them for Kafka")

    s3_endpoint: Annotated[str | None, BeforeValidator(lambda endpoint: endpoint or None)] = Field(
        default="http://127.0.0.1:9000", description="empty: AWS S3 itself"
    )
    s3_region: str = "us-east-1"
    s3_bucket: str = "deeplambda"
    s3_access_key: str = "deeplambda"
    s3_secret_key: SecretStr = SecretStr("")

    mysql_address: str = "127.0.0.1:3306"
    mysql_database: str = "deeplambda"
    mysql_root_password: SecretStr = SecretStr("")
    mysql_metastore_password: SecretStr = SecretStr("")
    mysql_platform_password: SecretStr = SecretStr("")
    mysql_views_password: SecretStr = SecretStr("")
    mysql_superset_password: SecretStr = SecretStr("")
    analyst_password: SecretStr = Field(default=SecretStr(""), description="read-only account `analyst` on both stores")

    grafana_admin_password: SecretStr = Field(default=SecretStr(""), description="account `admin` of the dashboards")

    metastore_uri: str = "thrift://127.0.0.1:9083"
    hive_address: str = "127.0.0.1:10000"
    model_url: str = "http://127.0.0.1:8500"
    query_url: str = "http://127.0.0.1:8600"

    require_tokens: bool = Field(default=False, description="whether the query service asks for one; so in compose")
    token_key: SecretStr = Field(default=SecretStr(""), description="that signs tokens")
    token: SecretStr | None = Field(default=None, description="what `deeplambda sql` shows to the query service")

    superset_secret_key: SecretStr = Field(default=SecretStr(""), description="that signs Superset's sessions; compose")
    superset_admin_password: SecretStr = Field(default=SecretStr(""), description="Superset's account `admin`; compose")

    spark_master: str = "local[2,4]"
    spark_driver_host: str = Field(
        default="127.0.0.1", description="where executors find a driver: the container's name on a cluster"
    )
    spark_options: str = Field(
        default="", description="NAME=VALUE, by spaces, for every session: spark.cores.max=2, spark.kubernetes.… "
    )
    spark_secret: SecretStr = Field(
        default=SecretStr(""), description="that a cluster's daemons, drivers and executors share"
    )
    checkpoint_location: str | None = Field(
        default=None, description="default: a folder of the data folder; s3a:// on a cluster"
    )
    ray_address: str = Field(
        default="", pattern="^(ray://.+:[0-9]+)?$", description="ray://HOST:10001, for tuning; empty: this machine"
    )
    ray_token: SecretStr = Field(default=SecretStr(""), description="that Ray asks for: a cluster's RAY_AUTH_TOKEN")
    needed_memory_gib: float = Field(default=8, ge=0, description="compose refuses a machine with less")
    event_limit_bytes: int = Field(default=1_000_000, description="a larger event is a dead letter, a larger body 413")

    def listening_on(self, address: str) -> str:
        """`host:port` where the service that clients find at `address`, a `host:port` or a URL, listens."""
        return f"{self.listen_host or host_of(address)}:{port_of(address)}"

    @property
    def on_spark_cluster(self) -> bool:
        """Whether Spark's executors are processes of their own, elsewhere."""
        return not self.spark_master.startswith("local")

    @property
    def checkpoints(self) -> str:
        """Where streams keep their progress, as Hadoop names it."""
        return self.checkpoint_location or f"file:{self.data_dir}/checkpoints"

    @property
    def warehouse(self) -> str:
        """The Iceberg warehouse, as S3A names it."""
        return f"s3a://{self.s3_bucket}/warehouse"


def secret_fields() -> list[str]:
    """Names of the settings that are secrets which the platform makes."""
    return [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]


@cache
def load_settings(data_dir: Path | None = None) -> Settings:
    """The settings of the stack whose data folder is `data_dir` (by default: `find_data_dir()`).

    Raises: ConfigurationError that names each setting that cannot be.
    """
    folder = (data_dir or find_data_dir()).resolve()
    secrets = Path(os.environ.get("DEEPLAMBDA_SECRETS_DIR") or folder / "secrets")
    try:
        return Settings(
            data_dir=folder,
            _env_file=folder / "stack.env",
            _secrets_dir=secrets if secrets.is_dir() else None,
        )
    except ValidationError as exc:
        wrong = [f"DEEPLAMBDA_{'_'.join(map(str, error['loc'])).upper()}: {error['msg']}" for error in exc.errors()]
        raise ConfigurationError("; ".join(wrong), _SETTINGS_REMEDY) from None  # the cause would show values
    except SettingsError as exc:
        raise ConfigurationError(str(exc), f"a list is written as JSON; {_SETTINGS_REMEDY}") from None
