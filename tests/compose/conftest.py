"""The stack of docker compose, built and started once for all tests of this folder: `make test-compose`.

`DEEPLAMBDA_COMPOSE_FILES` names the files, by colons. By default, stand-ins take the place of the official images.
`DEEPLAMBDA_COMPOSE_KEEP=1` leaves the stack up, and finds it again.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json

from deeplambda.config import Settings
from deeplambda.stack.local.ports import choose_free
from tests.traffic import eventually

ROOT = Path(__file__).parents[2]
FILES = "docker-compose.yml:tests/compose/docker-compose.stand-ins.yml"
UNREACHABLE = re.compile(r"^(socket\.gaierror|TimeoutError|ConnectionRefusedError|OSError):", re.MULTILINE)
"""What Python in a container says of a host that has no name there, or does not answer; not what Docker says."""
PUBLISHED = ("KAFKA", "MYSQL", "HIVE", "MODEL", "QUERY", "MQTT", "PROMETHEUS", "SUPERSET")


def without_engine() -> str | None:
    """Why there is nothing to test on, if so."""
    if shutil.which("docker") is None:
        return "there is no docker"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"'{' '.join(command)}' failed: {done.stderr.strip().splitlines()[-1:]}"
    return None


@dataclass
class Compose:
    """`docker compose` on one project, with ports of its own."""

    project: str
    environment: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, *arguments: str, check: bool = True, timeout_s: float = 1200, **more: str) -> str:
        """Run it; returns what it printed, both streams. Fails the test with that when it fails."""
        return self._run(["docker", "compose", *arguments], check, timeout_s, more)

    def script(self, *command: str, check: bool = True) -> str:
        """Run a script of the repository on the same project."""
        return self._run(list(command), check, 1200, {})

    def _run(self, command: list[str], check: bool, timeout_s: float, more: dict[str, str]) -> str:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | self.environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} exited {done.returncode}\n{done.stdout[-8000:]}")
        return done.stdout

    @property
    def has_stand_ins(self) -> bool:
        """Whether images are built here in the place of the official ones."""
        return "stand-ins" in self.environment["COMPOSE_FILE"]

    def up(self) -> None:
        """Start what is not up and wait until all is healthy."""
        started = time.monotonic()
        self("up", "--detach", "--wait", "--wait-timeout", "600")
        self.seconds["up"] = time.monotonic() - started

    def containers(self) -> list[dict[str, Any]]:
        """Each container, as `docker compose ps` tells it."""
        return [from_json(line) for line in self("ps", "--all", "--format", "json").splitlines()]

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's first container."""
        (first, *_) = [each["ID"] for each in self.containers() if each["Service"] == service]
        done = subprocess.run(["docker", "inspect", first], capture_output=True, text=True, check=True)
        found: dict[str, Any] = from_json(done.stdout)[0]
        return found

    def kill(self, service: str) -> None:
        """kill -9 of a container's main process, as the machine's own trouble would: compose has to bring it back."""
        os.kill(self.inspect(service)["State"]["Pid"], 9)

    def secret(self, name: str) -> str:
        """A password, as a person gets it."""
        return self("run", "--rm", "--no-deps", "-T", "operator", "deeplambda", "containers", "secret", name).strip()

    def settings(self, folder: Path) -> Settings:
        """The settings of a client on this machine: the published ports."""
        port = {name: self.environment[f"DEEPLAMBDA_{name}_PORT"] for name in PUBLISHED}
        return Settings(
            data_dir=folder,
            kafka_bootstrap=f"127.0.0.1:{port['KAFKA']}",
            kafka_security="SASL_PLAINTEXT",
            kafka_user="producer",
            kafka_password=self.secret("kafka_producer_password"),
            mysql_address=f"127.0.0.1:{port['MYSQL']}",
            hive_address=f"127.0.0.1:{port['HIVE']}",
            model_url=f"http://127.0.0.1:{port['MODEL']}",
            query_url=f"http://127.0.0.1:{port['QUERY']}",
            analyst_password=self.secret("analyst_password"),
        )


@pytest.fixture(scope="session")
def compose(mnist: Path) -> Iterator[Compose]:
    """The stack, healthy."""
    if reason := without_engine():
        pytest.skip(reason)
    project = os.environ.get("DEEPLAMBDA_COMPOSE_PROJECT", "deeplambda-test")
    taken: set[int] = set()
    ports = {}
    for name in PUBLISHED:
        taken.add(port := choose_free(taken))
        ports[f"DEEPLAMBDA_{name}_PORT"] = str(port)
    environment = {
        "COMPOSE_PROJECT_NAME": project,
        "COMPOSE_FILE": os.environ.get("DEEPLAMBDA_COMPOSE_FILES", FILES),
        "DEEPLAMBDA_MNIST_DIR": str(mnist),
        "DOCKER_BUILDKIT": "1",
    }
    keep = os.environ.get("DEEPLAMBDA_COMPOSE_KEEP") == "1"
    stack = Compose(project, environment | (_fixed_ports() if keep else ports))
    started = time.monotonic()
    stack("build", "secrets")  # first: the stand-ins take their components through it
    stack("build")
    stack.seconds["build"] = time.monotonic() - started
    try:
        stack.up()
        yield stack
    finally:
        if not keep:
            stack("--profile", "*", "down", "--volumes", "--remove-orphans", check=False)


def _fixed_ports() -> dict[str, str]:
    return {f"DEEPLAMBDA_{name}_PORT": str(29100 + n) for n, name in enumerate(PUBLISHED)}


@pytest.fixture(scope="session")
def client(compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings of a client on this machine."""
    return compose.settings(tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="session")
def demo(compose: Compose) -> str:
    """What `docker compose run --rm demo` prints; a champion serves afterwards."""
    return compose("run", "--rm", "-T", "demo", timeout_s=1800)


@pytest.fixture
def healthy(compose: Compose) -> Callable[[], bool]:
    """Waits until every container is healthy again."""

    def all_healthy() -> bool:
        containers = compose.containers()
        return bool(containers) and all(
            each["Health"] in ("", "healthy") and (each["State"] == "running" or each["ExitCode"] == 0)
            for each in containers
        )

    return lambda: eventually(all_healthy, timeout_s=240, every_s=2)
