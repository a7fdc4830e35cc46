"""Settings: addresses, accounts and limits of the platform, under the same names on one machine and in containers.

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
_SETTINGS_REMEDY = (
    "correct it in the environment, in stack.env or, with docker compose, in .env: src/deeplambda/config.py explains "
    "all settings, .env.example those of compose"
)


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


def is_loopback(address: str | None) -> bool:
    """Whether `address` is on this machine alone, and so a part of the local stack serves it.

    A list of addresses is a cluster's, which the local stack has none of.
    """
    return address is not None and "," not in address and host_of(address) in {"127.0.0.1", "localhost", "::1"}


def remedy_for(part: str, address: str | None, *names: str) -> str:
    """The remedy where `part` does not answer at its address. names: of the settings by which it is reached."""
    if is_loopback(address):
        return f"see 'deeplambda status' and 'deeplambda logs {part}'; 'deeplambda up' starts what is down"
    return f"check {', '.join(f'DEEPLAMBDA_{name.upper()}' for name in names)}, and the service there"


def _own_cache() -> Path:
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "deeplambda"
    try:
        return Path.home() / ".cache" / "deeplambda"
    except RuntimeError as exc:
        raise ConfigurationError("this account has no home folder", "set DEEPLAMBDA_CACHE_DIR to a folder") from exc


class Settings(BaseSettings):
    """Frozen; made by `load_settings()`. Units are in the names."""

    model_config = SettingsConfigDict(env_prefix="DEEPLAMBDA_", frozen=True, extra="ignore")

    data_dir: Path = Field(
        description="Folder with everything that the stack writes: data, logs, sockets, secrets; set as "
        "DEEPLAMBDA_DATA_DIR or found by `find_data_dir`."
    )
    cache_dir: Path = Field(
        default_factory=_own_cache,
        description="Folder of Java components, downloaded and compiled, which every clone on this machine shares.",
    )
    applications_dir: Path = Field(
        default=Path("examples"), description="Folder in which an application is looked up by its name."
    )
    applications: tuple[str, ...] = Field(
        default=("digits",),
        description="Names of the applications that the long-running services serve; in the environment, a JSON list.",
    )

    listen_host: str | None = Field(
        default=None,
        description="Host that services listen on: 0.0.0.0 in a container; unset, the host in the service's address.",
    )

    kafka_bootstrap: str = Field(
        default="127.0.0.1:9092",
        description="HOST:PORT of the Kafka broker that the platform's processes connect to; of a cluster's brokers, "
        "several with commas between: the local stack then starts none of its own.",
    )
    kafka_security: Literal["PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT",
        description="Kafka's security protocol; with SASL, clients log in by the mechanism PLAIN as `kafka_user`.",
    )
    kafka_user: str = Field(
        default="platform", description="Kafka account of the platform's processes; its password is `kafka_password`."
    )
    kafka_password: SecretStr = Field(
        default=SecretStr(""), description="Password of `kafka_user`, read where `kafka_security` is one with SASL."
    )
    kafka_producer_password: SecretStr = Field(
        default=SecretStr(""), description="Password of the Kafka account `producer`, which may only write events."
    )
    kafka_host_address: str = Field(
        default="127.0.0.1:9094",
        description="HOST:PORT that the broker in a container sends clients outside to; compose makes it of "
        "DEEPLAMBDA_KAFKA_HOST and DEEPLAMBDA_KAFKA_PORT.",
    )
    kafka_partitions: int = Field(
        default=2, ge=1, le=4096, description="Number of partitions that an application's topics are created with."
    )
    kafka_replication: int = Field(
        default=1, ge=1, description="Replication factor, in brokers, that topics are created with."
    )

    mqtt_address: str = Field(
        default="127.0.0.1:1883", description="HOST:PORT of the MQTT broker that the MQTT bridge reads events from."
    )
    mqtt_producer_password: SecretStr = Field(
        default=SecretStr(""), description="Password of the MQTT account `producer`, with which devices publish events."
    )
    mqtt_bridge_password: SecretStr = Field(
        default=SecretStr(""),
        description="Password of the MQTT account `bridge`, with which the MQTT bridge reads events.",
    )

    s3_endpoint: Annotated[str | None, BeforeValidator(lambda endpoint: endpoint or None)] = Field(
        default="http://127.0.0.1:9000", description="URL of the S3 service; empty stands for AWS S3 in `s3_region`."
    )
    s3_region: str = Field(default="us-east-1", description="AWS region that S3 requests are signed for.")
    s3_bucket: str = Field(
        default="deeplambda", description="S3 bucket that holds raw files, data sets, models and lake."
    )
    s3_access_key: str = Field(
        default="deeplambda", description="S3 access key, the public half of the pair with `s3_secret_key`."
    )
    s3_secret_key: SecretStr = Field(
        default=SecretStr(""), description="S3 secret key, the secret half of the pair with `s3_access_key`."
    )

    mysql_address: str = Field(
        default="127.0.0.1:3306",
        description="HOST:PORT of the MySQL or MariaDB server with the registry, the real-time views and metastore.",
    )
    mysql_database: str = Field(
        default="deeplambda", description="Name of the MySQL database that holds the platform's own tables."
    )
    mysql_root_password: SecretStr = Field(
        default=SecretStr(""),
        description="Password of the MySQL account `root`, which creates the databases and the other accounts.",
    )
    mysql_metastore_password: SecretStr = Field(
        default=SecretStr(""),
        description="Password of the MySQL account `metastore`, for the Hive metastore's database.",
    )
    mysql_platform_password: SecretStr = Field(
        default=SecretStr(""),
        description="Password of the MySQL account `platform`, which writes the registry.",
    )
    mysql_queries_password: SecretStr = Field(
        default=SecretStr(""),
        description="Password of the MySQL account `queries`, with which the query service keeps what Hive is asked.",
    )
    mysql_views_password: SecretStr = Field(
        default=SecretStr(""), description="Password of the MySQL account `views`, which writes the real-time views."
    )
    mysql_reader_password: SecretStr = Field(
        default=SecretStr(""),
        description="Password of the read-only MySQL account `reader`, with which query service and gateway ask for "
        "analysts.",
    )
    mysql_superset_password: SecretStr = Field(
        default=SecretStr(""),
        description="Password of the MySQL account `superset`, for Superset's database; compose only.",
    )
    analyst_password: SecretStr = Field(
        default=SecretStr(""),
        description="Password of the read-only account `analyst`, on MySQL and on the Hive gateway.",
    )

    grafana_admin_password: SecretStr = Field(
        default=SecretStr(""), description="Password of Grafana's account `admin`; compose only."
    )

    metastore_uri: str = Field(default="thrift://127.0.0.1:9083", description="Thrift URI of the Hive metastore.")
    hive_address: str = Field(
        default="127.0.0.1:10000", description="HOST:PORT of the Hive gateway (HiveServer2's Thrift protocol)."
    )
    model_url: str = Field(default="http://127.0.0.1:8500", description="Base URL of the model service.")
    model_timeout_s: float = Field(
        default=5,
        gt=0,
        description="How long, in seconds, stream and SQL wait for the model service's answer before they send it half "
        "as many rows at a time. More than the slowest row takes.",
    )
    device: str = Field(
        default="auto",
        pattern="^(auto|cpu|gpu|cuda(:[0-9]+)?)$",
        description="What model service and bulk scoring run models on: cpu, gpu, cuda:N for one of several GPUs, or "
        "auto, a GPU where there is one. Compose builds its image by the same setting, without CUDA where it is cpu or "
        "not set.",
    )
    stale_model_h: float = Field(
        default=0,
        ge=0,
        description="Age in hours, since its training, from which a champion counts as stale: its readiness says 503. "
        "0: never.",
    )
    stale_champions_s: float = Field(
        default=0,
        ge=0,
        description="How long, in seconds, the champions topic may be silent before what a model service serves counts "
        "as stale: its readiness says 503. 0: for ever, so that the service outlives Kafka.",
    )
    query_url: str = Field(default="http://127.0.0.1:8600", description="Base URL of the query service.")

    require_tokens: bool = Field(
        default=False, description="Whether the query service refuses requests without a token; compose turns it on."
    )
    token_key: SecretStr = Field(
        default=SecretStr(""),
        description="Key that signs the query service's tokens; a new key makes all of them invalid.",
    )
    token: SecretStr | None = Field(
        default=None,
        description="Token that `deeplambda sql` sends to the query service; unset, it issues one with `token_key`.",
    )

    superset_secret_key: SecretStr = Field(
        default=SecretStr(""), description="Key that signs Superset's sessions; compose only."
    )
    superset_admin_password: SecretStr = Field(
        default=SecretStr(""), description="Password of Superset's account `admin`; compose only."
    )

    spark_master: str = Field(
        default="local[2,4]",
        description="Spark's master URL: local[THREADS,ATTEMPTS] for the process itself, else the cluster's spark:// or k8s://.",
    )
    spark_driver_host: str = Field(
        default="127.0.0.1",
        description="Host at which executors reach the driver: on a cluster, the name of the driver's container.",
    )
    spark_options: str = Field(
        default="",
        description="Spark options for every session, as NAME=VALUE separated by spaces, such as spark.cores.max=2; "
        "they override the platform's own.",
    )
    spark_secret: SecretStr = Field(
        default=SecretStr(""),
        description="Secret that a Spark cluster's daemons, drivers and executors authenticate one another by.",
    )
    checkpoint_location: str | None = Field(
        default=None,
        description="Folder of the streams' checkpoints, s3a:// on a cluster; unset, `checkpoints` in the data folder.",
    )
    ray_address: str = Field(
        default="",
        pattern="^(ray://.+:[0-9]+)?$",
        description="ray://HOST:PORT of the Ray cluster that `deeplambda batch tune` runs on; empty: this machine.",
    )
    ray_token: SecretStr = Field(
        default=SecretStr(""), description="Token of the Ray cluster at `ray_address`: its RAY_AUTH_TOKEN."
    )
    needed_memory_gib: float = Field(
        default=8, ge=0, description="Memory, in GiB, below which compose refuses to start on a machine."
    )
    event_limit_bytes: int = Field(
        default=1_000_000,
        ge=1,
        le=16_000_000,  # and its key, and what Kafka adds, in a record of 16 MiB
        description="Largest event, in bytes: a larger one becomes a dead letter in the stream and a 413 over HTTP.",
    )

    trainer_memory_mb: int = Field(
        default=2048,
        ge=64,
        description="Memory, in MiB, that the workers of a training run may fill with rows together: a data set that "
        "is larger is read from S3 in every epoch, and shuffled in windows of half as much.",
    )
    kept_days: int = Field(
        default=7,
        ge=1,
        description="How long upkeep leaves what could be of use: the last snapshot of each day, data sets, runs that "
        "were broken off, the outbox.",
    )
    maintain_every_s: int = Field(
        default=3600,
        ge=0,
        description="How often the archive tidies up by itself; 0: never, 'deeplambda batch maintain' does.",
    )

    generations: bool = Field(
        default=False,
        description="Whether the part `generations` trains anew by itself, and promotes what the gate lets through.",
    )
    generation_labels: int = Field(
        default=10_000, ge=0, description="How many new labels start a generation; 0: no number of them does."
    )
    generation_drift_labels: int = Field(
        default=500, ge=1, description="How many labels since a drift was noticed start the generation that answers it."
    )
    generation_every_s: int = Field(
        default=86_400,
        ge=0,
        description="After how many seconds without a training any new label starts a generation; 0: never.",
    )
    generation_from: Literal["champion", "scratch"] = Field(
        default="champion", description="What a generation's training begins from: the champion's weights, or scratch."
    )
    generation_trials: int = Field(
        default=0,
        ge=0,
        description="How many sets of hyperparameters a generation tries before it trains, where the application has a "
        "search space; 0: it takes the champion's.",
    )
    generation_shadow_labels: int = Field(
        default=0,
        ge=0,
        description="How many labels of live events a generation's version may take, as a shadow of the champion, to "
        "be told better or worse; 0: it is promoted without.",
    )
    generation_shadow_s: int = Field(
        default=3600, ge=1, description="How long, in seconds, such a shadow may take; what is open then is promoted."
    )
    generation_pause_s: int = Field(
        default=3600, ge=0, description="The least time, in seconds, from the end of a generation to the next one."
    )

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


def secrets_dir(data_dir: Path) -> Path:
    """The folder of the secret files: `DEEPLAMBDA_SECRETS_DIR`, else the data folder's."""
    return Path(os.environ.get("DEEPLAMBDA_SECRETS_DIR") or data_dir / "secrets")


@cache
def load_settings(data_dir: Path | None = None) -> Settings:
    """The settings of the stack whose data folder is `data_dir` (by default: `find_data_dir()`).

    Raises: ConfigurationError, which names each setting with an invalid value.
    """
    folder = (data_dir or find_data_dir()).resolve()
    secrets = secrets_dir(folder)
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
