"""The README's commands and programs do what it says, on the running stack."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deeplambda.config import Settings
from deeplambda.loading import pack_application
from tests.traffic import eventually, realtime_ids

ROOT = Path(__file__).parents[2]
# What it says of Docker is for tests/compose.
README = re.sub(r"## Start with Docker.*?(?=## )", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^\$ (.*)$", README, re.MULTILINE)


def here(text: str, stack: Settings) -> str:
    """The text with the default addresses and folder replaced by those of the tests' stack."""
    addresses = {
        name: str(field.default)
        for name, field in Settings.model_fields.items()
        if isinstance(field.default, str) and re.search(r":\d+$", field.default)
    }
    for name, default in addresses.items():
        text = text.replace(default.split("//")[-1], str(getattr(stack, name)).split("//")[-1])
    return text.replace(".deeplambda/secrets", f"{stack.data_dir}/secrets")


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, stack: Settings, champion: int) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if "batch recompute" in command:  # it needs an archived event, as it has after the demo
        subprocess.run([sys.executable, "-c", here(PROGRAMS[1], stack)], check=True)
        assert eventually(lambda: archived(stack)), "the event was not archived"
    done = subprocess.run(
        ["bash", "-c", here(command, stack)], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if command.startswith("curl"):
        assert '"status":4' not in done.stdout
        assert '"predictions":' in done.stdout or '"rows":' in done.stdout, done.stdout


def archived(stack: Settings) -> bool:
    from sqlalchemy import text

    from deeplambda.adapters import hive

    with hive.engine(stack).connect() as connection:
        return bool(connection.execute(text("SELECT count(*) FROM lake.digits.events")).scalar_one())


@pytest.mark.parametrize("program", [p for p in PROGRAMS if "class " not in p], ids=lambda p: p.split()[1].strip(","))
def test_program(program: str, stack: Settings, champion: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", here(program, stack)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_produced_event_is_scored(stack: Settings, champion: int) -> None:
    producing = next(program for program in PROGRAMS if "KafkaProducer" in program)
    subprocess.run([sys.executable, "-c", here(producing, stack)], check=True)
    assert eventually(lambda: realtime_ids(stack, "readme") == ["readme-1"])


def test_the_application_in_the_readme_is_one(stack: Settings, tmp_path: Path) -> None:
    source = next(program for program in PROGRAMS if "(Application)" in program)
    assert len([line for line in source.splitlines() if line.strip()]) <= 40
    (tmp_path / "fashion").mkdir()
    (tmp_path / "fashion" / "application.py").write_text(source)
    assert pack_application(str(tmp_path / "fashion"), stack).load().build_model() is not None


def test_the_two_commands_exist() -> None:
    """`make demo` and `make test` are not run from within a test that `make test` runs."""
    for target in ("demo", "test", "unit", "bench", "up", "down"):
        subprocess.run(["make", "-n", "-o", ".venv/ready", target], cwd=ROOT, check=True, capture_output=True)
