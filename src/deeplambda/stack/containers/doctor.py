"""What is wrong with the settings of docker compose, in `.env`, and with what they name."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from dotenv import dotenv_values

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, NotReady
from deeplambda.stack import probes
from deeplambda.stack.containers.secrets import check_kafka_host
from deeplambda.stack.containers.spark_daemons import EXECUTOR_OVERHEAD_MB, HEAP_MB
from deeplambda.stack.findings import GIB, NOMINAL, Finding, of_no_setting

PROJECT = Path("/project")
"""Where the operator's container sees the folder of docker-compose.yml."""
_PREFIX = "DEEPLAMBDA_"
_MEMORY = re.compile(r"[1-9]\d*[bkmg]", re.IGNORECASE)
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_PORTS = range(1, 1 << 16)


def examine_containers(settings: Settings) -> list[Finding]:
    """From inside a container: the settings, the memory, and whether each service answers. Changes nothing."""
    findings = [*examine_env_file(PROJECT), memory(settings)]
    services: Mapping[str, Callable[[Settings], str]] = {
        "Kafka": probes.kafka,
        "S3": probes.s3,
        "MySQL": probes.mysql,
        "Metastore": probes.metastore,
        "Gateway": probes.gateway,
        "Model service": probes.model,
        "Query service": probes.query,
    }
    for name, probe in services.items():
        try:
            findings.append(Finding(name, probe(settings)))
        except NotReady as exc:
            findings.append(Finding(name, exc.message, "see 'docker compose ps --all' and 'docker compose logs'"))
    return findings


def examine_env_file(folder: Path) -> list[Finding]:
    """Each setting of `folder/.env` that nothing reads or that only compose would find wrong.

    What `Settings` finds wrong is refused before, by every command.
    """
    try:
        example = (folder / ".env.example").read_text()
        given = dotenv_values(folder / ".env") if (folder / ".env").exists() else {}
    except OSError as exc:
        return [Finding("Settings", f"cannot read {exc.filename}", f"let user 1000 read it: chmod o+r {exc.filename}")]
    defaults = dict(re.findall(rf"^#?({_PREFIX}\w+)=(.*)$", example, re.MULTILINE))
    known = list(defaults)
    wrong = [
        Finding(f"Setting {name}", *problem)
        for name, value in given.items()
        if name.startswith(_PREFIX) and (problem := _problem(name, value or "", known))
    ]
    if not wrong:
        wrong = [
            *_kafka_host(given),
            *_worker_limit(defaults | {name: value for name, value in given.items() if value}),
        ]
    return wrong or [Finding("Settings", f"{len(given)} in .env, each one known")]


def memory(settings: Settings) -> Finding:
    """Whether the machine holds the whole stack."""
    total = psutil.virtual_memory().total / GIB
    found = f"{total:.1f} GiB"
    if total >= NOMINAL * settings.needed_memory_gib:
        return Finding("Memory", found)
    return Finding(
        "Memory",
        f"{found}, but the stack needs {settings.needed_memory_gib:g}",
        "give Docker more, or lower DEEPLAMBDA_NEEDED_MEMORY_GIB and the workers' share in .env",
    )


def check_machine(settings: Settings) -> None:
    """Before anything starts. Raises: ConfigurationError when the machine is too small."""
    finding = memory(settings)
    if not finding.is_fine:
        raise ConfigurationError(f"this machine has {finding.found}", finding.remedy)


def _kafka_host(given: Mapping[str, str | None]) -> list[Finding]:
    """What is wrong with where compose has Kafka send its clients."""
    host = given.get("DEEPLAMBDA_KAFKA_HOST") or given.get("DEEPLAMBDA_BIND") or "127.0.0.1"
    try:
        check_kafka_host(host)
    except ConfigurationError as exc:
        return [Finding("Setting DEEPLAMBDA_KAFKA_HOST", exc.message, exc.remedy or "")]
    return []


def _worker_limit(values: Mapping[str, str | None]) -> list[Finding]:
    """Whether a Spark worker's container holds what its executors may take."""
    size = {name: _bytes(str(values[f"DEEPLAMBDA_WORKER_{name}"])) for name in ("MEMORY", "LIMIT")}
    beyond_mb = HEAP_MB + int(str(values["DEEPLAMBDA_WORKER_CORES"])) * EXECUTOR_OVERHEAD_MB
    needed_mb = size["MEMORY"] / _UNITS["m"] + beyond_mb
    if size["LIMIT"] >= needed_mb * _UNITS["m"]:
        return []
    return [
        Finding(
            "Setting DEEPLAMBDA_WORKER_LIMIT",
            f"{values['DEEPLAMBDA_WORKER_LIMIT']} is less than a worker may take: its memory and {beyond_mb} MiB",
            f"give {math.ceil(needed_mb)}m, or lower DEEPLAMBDA_WORKER_MEMORY or DEEPLAMBDA_WORKER_CORES",
        )
    ]


def _bytes(amount: str) -> int:
    return int(amount[:-1]) * _UNITS[amount[-1].lower()]


def _problem(name: str, value: str, known: list[str]) -> tuple[str, str] | None:
    if unread := of_no_setting(name, known):
        return unread
    if name.endswith("_PORT") and not (value.isdecimal() and int(value) in _PORTS):
        return f"{value!r} is no port", "give a number from 1 to 65535"
    if name == "DEEPLAMBDA_WORKER_CORES" and value and not (value.isdecimal() and int(value)):
        return f"{value!r} is no number of task slots", "give one such as 4"
    if name in ("DEEPLAMBDA_WORKER_MEMORY", "DEEPLAMBDA_WORKER_LIMIT") and not _MEMORY.fullmatch(value):
        return f"{value!r} is no amount of memory", "give one such as 2g or 2560m"
    return None
