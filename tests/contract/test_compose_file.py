"""docker-compose.yml, the Dockerfile and the settings fit one another."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deeplambda.config import Settings
from deeplambda.stack.containers import mosquitto
from deeplambda.stack.containers.secrets import READERS

ROOT = Path(__file__).parents[2]
FILE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
COMPOSE_ONLY = {"BIND", "IMAGE", "KAFKA_HOST", "MNIST_DIR"}
"""Settings that compose itself reads, without `DEEPLAMBDA_`; and those that end in one of `ENDINGS`."""
ENDINGS = ("_PORT", "_SPARK_OPTIONS", "CLUSTER_ID", "WORKER_CORES", "WORKER_MEMORY", "WORKER_LIMIT", "_THREADS")


def mounted(service: str) -> dict[str, str]:
    """By named volume, where the service has it."""
    pairs = (volume.split(":")[:2] for volume in SERVICES[service]["volumes"])
    return {name: target for name, target in pairs if name in FILE["volumes"]}


def folders_of_the_image() -> set[str]:
    """The folders that the Dockerfile gives to the image's user, braces written out."""
    (line,) = re.findall(r"install --directory --owner deeplambda --group \w+ (.*?)\nCOPY", DOCKERFILE, re.DOTALL)
    found = set()
    for word in line.replace("\\\n", "").split():
        stem, _, endings = word.rstrip("}").partition("{")
        found |= {stem + ending for ending in endings.split(",")}
    return found


@pytest.mark.parametrize("service", ["secrets", "volumes"])
def test_a_new_volume_belongs_to_the_images_user(service: str) -> None:
    assert set(mounted(service).values()) <= folders_of_the_image()


@pytest.mark.parametrize("service", ["mysql", "nginx"])
def test_what_requests_write_to_memory_fits_into_it(service: str) -> None:
    sizes = [re.search(r"^/(?:tmp|var/cache/nginx):size=(\d+)m", each) for each in SERVICES[service]["tmpfs"]]
    limit = int(SERVICES[service]["mem_limit"].removesuffix("m"))
    assert 0 < sum(int(size[1]) for size in sizes if size) < limit


def test_the_mqtt_broker_takes_less_than_its_container_may(tmp_path: Path) -> None:
    assert f"memory_limit {mosquitto.MEMORY_LIMIT_BYTES}\n" in mosquitto.configuration(Settings(data_dir=tmp_path))
    container_bytes = int(SERVICES["mqtt"]["mem_limit"].removesuffix("m")) * 2**20
    assert container_bytes - mosquitto.MEMORY_LIMIT_BYTES >= 64 * 2**20


@pytest.mark.parametrize(("service", "folder"), [("spark-worker", "/data/spark"), ("gateway", "/data/gateway")])
def test_what_tasks_cannot_hold_lies_on_disk(service: str, folder: str) -> None:
    assert folder in SERVICES[service]["volumes"]
    assert folder in folders_of_the_image()


LONG_RUNNING = [name for name, service in SERVICES.items() if service["restart"] == "unless-stopped"]


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_a_service_that_stays_up_is_bounded_and_has_time_to_end(service: str) -> None:
    assert {"mem_limit", "stop_grace_period"} <= set(SERVICES[service])


def test_what_is_unset_is_what_the_example_says() -> None:
    """The doctor counts with the example's numbers."""
    example = dict(re.findall(r"^#(DEEPLAMBDA_\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    text = (ROOT / "docker-compose.yml").read_text()
    used = re.findall(r"\$\{(DEEPLAMBDA_WORKER_\w+):-([^}]*)\}", text)
    assert len(used) == 3
    assert {name: example[name] for name, _ in used} == dict(used)


def test_every_reader_of_secrets_has_a_volume_that_the_first_step_fills() -> None:
    filled = mounted("secrets")
    assert {f"secrets-{reader}" for reader in READERS} <= set(filled)
    for name, service in SERVICES.items():
        read = [volume.split(":")[0] for volume in service.get("volumes", []) if volume.startswith("secrets-")]
        assert set(read) <= set(filled), name


COMMANDS = {name: SERVICES[name]["command"] for name in READERS if "command" in SERVICES.get(name, {})}
MODULES = {name: command[2] for name, command in COMMANDS.items() if command[0] == "python"}
"""What the platform's own services run."""
OPENS = re.compile(r'\bengine\(\s*settings, "(\w+)"|\bsettings\.(analyst|mysql_\w+)_password')


def file_of(module: str) -> Path | None:
    for root in (ROOT / "src", ROOT):
        folder = root / module.replace(".", "/")
        for path in (folder.with_suffix(".py"), folder / "__main__.py", folder / "__init__.py"):
            if path.is_file():
                return path
    return None


def code_of(module: str) -> Iterator[Path]:
    """The files of a module and of all of ours that it imports, wherever in a file."""
    waiting, seen = [module], set[Path]()
    while waiting:
        path = file_of(waiting.pop())
        if path is None or path in seen:
            continue
        seen.add(path)
        yield path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [each.name for each in node.names]


@pytest.mark.parametrize("part", MODULES)
def test_a_part_gets_the_passwords_of_the_mysql_accounts_that_its_code_opens_and_no_others(part: str) -> None:
    opens_whatever_it_is_asked_for = ROOT / "src/deeplambda/adapters/mysql.py"
    texts = [path.read_text() for path in code_of(MODULES[part]) if path != opens_whatever_it_is_asked_for]
    opened = {account or read.removeprefix("mysql_") for text in texts for account, read in OPENS.findall(text)}
    given = {re.sub("^mysql_|_password$", "", field) for field in READERS[part] if re.match("mysql_|analyst_", field)}
    assert opened == given


def test_what_holds_data_is_in_the_backup() -> None:
    made_again = {"downloads", "prometheus-data"} | {f"secrets-{reader}" for reader in READERS}
    made_again |= {"secrets-kafka", "secrets-s3"}
    assert set(FILE["volumes"]) - made_again == set(mounted("volumes"))


def test_every_setting_of_the_file_is_one_and_is_explained() -> None:
    named = set(re.findall(r"\bDEEPLAMBDA_(\w+)", (ROOT / "docker-compose.yml").read_text()))
    unknown = {
        name
        for name in named
        if name.lower() not in Settings.model_fields and name not in COMPOSE_ONLY and not name.endswith(ENDINGS)
    }
    assert unknown == {"SECRETS_DIR"}
    explained = set(re.findall(r"^#DEEPLAMBDA_(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    asked = set(re.findall(r"\$\{DEEPLAMBDA_(\w+):-", (ROOT / "docker-compose.yml").read_text()))
    assert asked - explained == set()
    assert explained - asked == set()


def test_only_loopback_is_published() -> None:
    published = [(name, port) for name, service in SERVICES.items() for port in service.get("ports", [])]
    assert published
    for name, port in published:
        assert port.startswith("${DEEPLAMBDA_BIND:-127.0.0.1}:"), name


def test_the_mqtt_broker_is_made_anew_where_a_setting_of_its_configuration_changes() -> None:
    source = Path(mosquitto.__file__).read_text()
    read = {f"DEEPLAMBDA_{name.upper()}" for name in re.findall(r"\bsettings\.(\w+)", source)}
    given = SERVICES["mqtt"]["environment"]
    assert given == {name: FILE["x-settings"][name] for name in read}
