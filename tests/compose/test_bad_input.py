"""What a person gets wrong is named, with what to do, and nothing restarts without a word."""

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.compose.conftest import Compose


@pytest.fixture
def small_volume() -> Iterator[str]:
    """A volume of one megabyte."""
    options = ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m,uid=1000"]
    done = subprocess.run(["docker", "volume", "create", *options], capture_output=True, text=True, check=True)
    yield (name := done.stdout.strip())
    subprocess.run(["docker", "volume", "rm", name], capture_output=True, check=True)


def test_a_taken_port_is_named(compose: Compose) -> None:
    taken = compose.environment["DEEPLAMBDA_QUERY_PORT"]
    said = compose(
        "up",
        "--detach",
        "--no-deps",
        "query",
        check=False,
        DEEPLAMBDA_QUERY_PORT=compose.environment["DEEPLAMBDA_MYSQL_PORT"],
    )
    compose("up", "--detach", "--wait", "--no-deps", "query", DEEPLAMBDA_QUERY_PORT=taken)
    assert "port is already allocated" in said or "address already in use" in said


def test_a_wrong_secret_is_named(compose: Compose) -> None:
    said = compose(
        "run", "--rm", "--no-deps", "-T", "-e", "DEEPLAMBDA_MYSQL_PLATFORM_PASSWORD=wrong", "operator",
        "deeplambda", "model", "list", "digits", check=False,
    )  # fmt: skip
    assert "Access denied for user 'platform'" in said
    assert "Traceback" not in said


def test_a_machine_that_is_too_small_is_refused_at_the_start(compose: Compose) -> None:
    said = compose("run", "--rm", "-T", "secrets", check=False, DEEPLAMBDA_NEEDED_MEMORY_GIB="4096")
    assert "but the stack needs 4096" in said
    assert "give Docker more" in said
    assert "Traceback" not in said


def test_a_setting_that_cannot_be_is_named(compose: Compose) -> None:
    said = compose("run", "--rm", "-T", "secrets", check=False, DEEPLAMBDA_KAFKA_PARTITIONS="many")
    assert "DEEPLAMBDA_KAFKA_PARTITIONS: Input should be a valid integer" in said
    assert "Traceback" not in said


def test_a_full_volume_is_named(compose: Compose, small_volume: str) -> None:
    health = [
        "run", "--rm", "--no-deps", "-T", "--volume", f"{small_volume}:/data/checkpoints",
        "stream", "python", "-m", "deeplambda.stack.containers.health", "stream",
    ]  # fmt: skip
    assert "/data/checkpoints is full: 1 MB free, 64 needed" in compose(*health, check=False)
    on_it = f"{small_volume}:/var/lib/mysql"
    server = compose("run", "--rm", "--no-deps", "-T", "--volume", on_it, "mysql", check=False)
    assert re.search("out of disk space|No space left on device", server)


def test_the_doctor_finds_every_service(compose: Compose) -> None:
    said = compose("run", "--rm", "-T", "operator", "deeplambda", "doctor")
    for subject in (
        "Settings",
        "Memory",
        "Kafka",
        "S3",
        "MySQL",
        "Metastore",
        "Gateway",
        "Model service",
        "Query service",
    ):
        assert f"ok      {subject}: " in said, said
