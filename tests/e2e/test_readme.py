"""The README's commands and programs do what it says, on the running stack."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deeplambda.config import Settings
from deeplambda.loading import pack_application
from tests.traffic import eventually, new_run, realtime_ids

ROOT = Path(__file__).parents[2]
# What it says of Docker is for tests/compose.
README = re.sub(r"## Start with Docker.*?(?=## )", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^\$ (.*)$", README, re.MULTILINE)


RUN_ELSEWHERE = ("deeplambda batch run digits", "deeplambda batch recompute digits")
"""Minutes of work, word for word what the fixtures `champion` and `recomputation` of tests/e2e/test_loop.py run."""
PRODUCING = next(program for program in PROGRAMS if "KafkaProducer" in program)


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


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in RUN_ELSEWHERE])
def test_command(command: str, stack: Settings, champion: int) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", here(command, stack)], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if command.startswith("curl"):
        assert '"status":4' not in done.stdout
        assert '"predictions":' in done.stdout or '"rows":' in done.stdout, done.stdout


def test_what_is_run_elsewhere_is_in_the_readme() -> None:
    assert set(RUN_ELSEWHERE) <= set(COMMANDS)


@pytest.mark.parametrize(
    "program",
    [each for each in PROGRAMS if "class " not in each and each != PRODUCING],
    ids=lambda each: each.split()[1].strip(","),
)
def test_program(program: str, stack: Settings, champion: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", here(program, stack)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_produced_event_is_scored(stack: Settings, champion: int) -> None:
    run = new_run("readme")  # an id of its own: the README's may have been scored before
    producing = here(PRODUCING, stack).replace("readme-1", f"{run}-1")
    subprocess.run([sys.executable, "-c", producing], check=True)
    assert eventually(lambda: realtime_ids(stack, run) == [f"{run}-1"])


def test_the_application_in_the_readme_is_one(stack: Settings, tmp_path: Path) -> None:
    source = next(program for program in PROGRAMS if "(Application)" in program)
    assert len([line for line in source.splitlines() if line.strip()]) <= 40
    (tmp_path / "fashion").mkdir()
    (tmp_path / "fashion" / "application.py").write_text(source)
    assert pack_application(str(tmp_path / "fashion"), stack).load().build_model() is not None


def test_the_two_commands_exist() -> None:
    """`make demo` and `make test` are not run from within a test that `make test` runs."""
    for target in ("demo", "test", "test-all", "unit", "bench", "up", "down"):
        subprocess.run(["make", "-n", "-o", ".venv/ready", target], cwd=ROOT, check=True, capture_output=True)
