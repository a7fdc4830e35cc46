"""The parts of the local stack: what each needs, how it is started and how it is asked whether it is well."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from deeplambda.config import Settings, is_loopback, port_of
from deeplambda.errors import ConfigurationError
from deeplambda.service import heartbeat
from deeplambda.stack import cds_training, metastore, probes, provision
from deeplambda.stack.local import kafka, mariadb, s3
from deeplambda.stack.local.ports import kafka_controller_port


def _nothing(_: Settings) -> None:
    return None


def _no_states(_: Settings) -> dict[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One long-running program of the stack.

    needs: parts that must answer before this one starts.
    components: what must be in the cache, by the names in components.toml.
    reads: fields of the settings that its command, its `prepare` or its program reads; when one has changed,
    `deeplambda up` starts the part anew. runs_applications: whether it loads the deployed code of applications.
    listens: the field of the settings that holds its address; None for a part that listens on no port.
    prepare: writes what the program reads when it starts; called before `deeplambda up` starts it; idempotent.
    probe: a short note about the part when it is well; raises NotReady.
    states: by application, or by loop, `running` or `failing: ` and why; raises NotReady.
    provision: creates what other parts expect to find; called by `deeplambda up` once `probe` succeeds; idempotent.
    """

    name: str
    title: str
    command: Callable[[Settings], list[str]]
    probe: Callable[[Settings], str]
    needs: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    runs_applications: bool = False
    listens: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Settings], None] = _nothing
    states: Callable[[Settings], dict[str, str]] = _no_states
    provision: Callable[[Settings], None] = _nothing
    start_timeout_s: int = 240
    stop_timeout_s: int = 20

    def address(self, settings: Settings) -> str | None:
        """Where clients find it."""
        return getattr(settings, self.listens) if self.listens else None

    def is_local(self, settings: Settings) -> bool:
        """Whether this machine runs it: a part whose address is elsewhere is only looked at."""
        return self.listens is None or is_loopback(self.address(settings))

    def ports(self, settings: Settings) -> list[int]:
        """The ports that it listens on."""
        address = self.address(settings)
        if address is None:
            return []
        return [port_of(address), *([kafka_controller_port(settings)] if self.name == "kafka" else [])]


def _module(name: str) -> Callable[[Settings], list[str]]:
    return lambda _: [sys.executable, "-m", name]


_PYTHON = {
    "PYTHONUNBUFFERED": "1",
    "PYSPARK_PYTHON": sys.executable,
    "PYSPARK_DRIVER_PYTHON": sys.executable,
    "SPARK_LOCAL_IP": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # one arena per thread, the default, holds on to memory that nobody uses
}

_KAFKA = ("kafka_bootstrap", "kafka_security", "kafka_user", "kafka_password", "kafka_partitions")
_S3 = ("s3_endpoint", "s3_region", "s3_bucket", "s3_access_key", "s3_secret_key")
_MYSQL = (
    *("mysql_address", "mysql_database", "mysql_platform_password", "mysql_views_password", "mysql_queries_password"),
    *("mysql_reader_password", "analyst_password"),
)
_SPARK = ("metastore_uri", "spark_master", "spark_driver_host", "spark_options", "spark_secret", "checkpoint_location")
_GENERATIONS = (
    *("generations", "generation_labels", "generation_drift_labels", "generation_every_s", "generation_pause_s"),
    *("generation_from", "generation_shadow_labels", "generation_shadow_s", "generation_trials", "trainer_memory_mb"),
    *("ray_address", "ray_token"),
)
_ARCHIVE = ("device", "event_limit_bytes", "kept_days", "maintain_every_s")
_APPLICATIONS = ("applications", "applications_dir", "cache_dir", "listen_host")

PARTS: tuple[Part, ...] = (
    Part(
        name="kafka",
        title="Kafka, the broker",
        components=("kafka",),
        listens="kafka_bootstrap",
        prepare=kafka.prepare,
        reads=("kafka_bootstrap", "kafka_partitions", "kafka_replication"),
        command=kafka.command,
        probe=probes.kafka,
        provision=provision.kafka_topics,
        stop_timeout_s=30,
    ),
    Part(
        name="s3",
        title="S3, the object store",
        components=("s3",),
        listens="s3_endpoint",
        prepare=s3.prepare,
        reads=_S3,
        command=s3.command,
        probe=probes.s3,
        provision=provision.s3_bucket,
    ),
    Part(
        name="mysql",
        title="MySQL, recent data",
        components=("mysql",),
        listens="mysql_address",
        prepare=mariadb.prepare,
        reads=("mysql_address", "mysql_root_password"),
        command=mariadb.command,
        probe=probes.mysql,
        provision=provision.mysql_accounts,
        stop_timeout_s=60,
    ),
    Part(
        name="metastore",
        title="Hive metastore",
        needs=("mysql", "s3"),
        components=("spark", "metastore"),
        listens="metastore_uri",
        prepare=metastore.prepare,
        reads=("metastore_uri", "listen_host", "mysql_address", "mysql_metastore_password", *_S3),
        command=metastore.command,
        probe=probes.metastore,
    ),
    Part(
        name="gateway",
        title="Hive gateway, SQL over both stores",
        needs=("metastore", "mysql", "s3"),
        components=("spark",),
        listens="hive_address",
        prepare=cds_training.make_if_missing,
        reads=(*_APPLICATIONS, *_KAFKA, *_S3, *_MYSQL, *_SPARK, "hive_address", "model_url", "model_timeout_s"),
        runs_applications=True,
        command=_module("serving_layer.hive_gateway"),
        environment=_PYTHON,
        probe=probes.gateway,
        states=partial(heartbeat.last_states, part="gateway"),
    ),
    Part(
        name="model",
        title="Model service",
        needs=("kafka", "s3", "mysql"),
        listens="model_url",
        reads=(
            *_APPLICATIONS,
            *_KAFKA,
            *_S3,
            *_MYSQL,
            "model_url",
            "event_limit_bytes",
            "token_key",
            "device",
            "stale_model_h",
            "stale_champions_s",
        ),
        command=_module("speed_layer.model_service"),
        environment=_PYTHON,
        probe=probes.model,
        states=probes.model_states,
    ),
    Part(
        name="stream",
        title="Scoring stream",
        needs=("kafka", "s3", "mysql", "metastore"),  # the last that the CDS training session uses
        components=("spark",),
        prepare=cds_training.make_if_missing,
        reads=(*_APPLICATIONS, *_KAFKA, *_S3, *_SPARK, "model_url", "model_timeout_s", "event_limit_bytes"),
        command=_module("speed_layer.stream"),
        environment=_PYTHON,
        probe=partial(heartbeat.probe_heartbeat, part="stream"),
        states=partial(heartbeat.last_states, part="stream"),
    ),
    Part(
        name="archive",
        title="Archive stream",
        needs=("kafka", "metastore", "mysql", "s3"),
        components=("spark",),
        prepare=cds_training.make_if_missing,
        reads=(*_APPLICATIONS, *_KAFKA, *_S3, *_MYSQL, *_SPARK, *_ARCHIVE),
        runs_applications=True,
        command=_module("batch_layer.archive"),
        environment=_PYTHON,
        probe=partial(heartbeat.probe_heartbeat, part="archive"),
        states=partial(heartbeat.last_states, part="archive"),
    ),
    Part(
        name="generations",
        title="Generations, trained by themselves",
        needs=("kafka", "metastore", "mysql", "s3"),
        components=("spark",),
        reads=(*_APPLICATIONS, *_KAFKA, *_S3, *_MYSQL, *_SPARK, *_GENERATIONS),
        command=_module("batch_layer.generations"),
        environment=_PYTHON,
        probe=partial(heartbeat.probe_heartbeat, part="generations"),
        states=partial(heartbeat.last_states, part="generations"),
    ),
    Part(
        name="views",
        title="Real-time views",
        needs=("kafka", "mysql"),
        reads=(*_APPLICATIONS, *_KAFKA, *_MYSQL),
        command=_module("serving_layer.views"),
        environment=_PYTHON,
        probe=partial(heartbeat.probe_heartbeat, part="views"),
        states=partial(heartbeat.last_states, part="views"),
    ),
    Part(
        name="query",
        title="Query service",
        needs=("mysql",),
        listens="query_url",
        reads=(*_APPLICATIONS, *_MYSQL, "hive_address", "query_url", "require_tokens", "token_key"),
        runs_applications=True,
        command=_module("serving_layer.query_service"),
        environment=_PYTHON,
        probe=probes.query,
    ),
)

_BY_NAME = {part.name: part for part in PARTS}


def part_named(name: str) -> Part:
    """Raises: ConfigurationError when there is none of that name."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise ConfigurationError(f"the stack has no part {name!r}", f"its parts are {', '.join(_BY_NAME)}") from None


def with_needs(names: Iterable[str]) -> list[Part]:
    """The parts named, all of them when none is, and whatever they need; each after what it needs."""
    wanted = {part_named(name).name for name in names} or set(_BY_NAME)
    while more := {need for name in wanted for need in _BY_NAME[name].needs} - wanted:
        wanted |= more
    return [part for part in PARTS if part.name in wanted]  # PARTS is in that order, which a test holds it to


def stopping_waves(parts: Iterable[Part]) -> list[list[Part]]:
    """`parts` in the order to stop them: each wave holds those that nothing still running needs."""
    left = {part.name: part for part in parts}
    waves = []
    while left:
        needed = {need for part in left.values() for need in part.needs}
        wave = [part for name, part in left.items() if name not in needed]
        waves.append(wave)
        for part in wave:
            del left[part.name]
    return waves
