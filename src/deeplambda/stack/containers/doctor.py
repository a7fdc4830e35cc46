"""What is wrong with the settings of docker compose, in `.env`, and with what they name."""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from dotenv import dotenv_values

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, NotReady
from deeplambda.stack import probes
from deeplambda.stack.findings import GIB, NOMINAL, Finding

PROJECT = Path("/project")
"""Where the operator's container sees the folder of docker-compose.yml."""
_PREFIX = "DEEPLAMBDA_"
_MEMORY = re.compile(r"[1-9]\d*[bkmg]", re.IGNORECASE)
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
    known = re.findall(rf"^#?({_PREFIX}\w+)=", example, re.MULTILINE)
    wrong = [
        Finding(f"Setting {name}", *problem)
        for name, value in given.items()
        if name.startswith(_PREFIX) and (problem := _problem(name, value or "", known))
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


def _problem(name: str, value: str, known: list[str]) -> tuple[str, str] | None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        return "nothing reads it", f"write {near[0]}" if near else "remove it; .env.example names what there is"
    if name.endswith("_PORT") and not (value.isdecimal() and int(value) in _PORTS):
        return f"{value!r} is no port", "give a number from 1 to 65535"
    if name in ("DEEPLAMBDA_WORKER_MEMORY", "DEEPLAMBDA_WORKER_LIMIT") and not _MEMORY.fullmatch(value):
        return f"{value!r} is no amount of memory", "give one such as 2g or 2560m"
    return None
