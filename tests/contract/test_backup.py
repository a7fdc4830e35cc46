"""scripts/backup and scripts/restore ask the engine for what they should; tests/compose runs them on a real one.

A program in the place of `docker` writes down what it is asked, and answers for a stack whose containers a test names.
"""

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
DOCKER = r"""#!/usr/bin/env bash
echo "$*" >>"$HERE/asked"
case "$*" in
    *" ls /volumes") printf '%s\n' kafka-data mysql-data ;;
    *" -czf - .") tar -czf - -C "$HERE" docker ;;
    "ps --quiet "*project=tested*) sed 's/=.*//' "$HERE/containers" ;;
    "ps "*project=tested*) sed 's/.*=//' "$HERE/containers" ;;
    "compose config") echo 'name: tested' ;;
    "compose config --services") printf '%s\n' kafka model nginx ;;
    *"config --services") printf '%s\n' kafka model nginx model-gpu mqtt ;;
    inspect*) [ -e "$HERE/inspected" ] && echo healthy || echo starting; touch "$HERE/inspected" ;;
    *" -xzf -") volume=${*: -3:1}; cat >"$HERE/restored-${volume#/volumes/}.tar.gz" ;;
esac
"""


class Stack:
    """Containers that run, as `id=service` each, and what was asked about them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (program := folder / "docker").write_text(DOCKER)
        program.chmod(0o755)
        self.runs()

    def runs(self, *containers: str) -> None:
        (self.folder / "containers").write_text("".join(f"{each}\n" for each in containers))

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.run(
            [SCRIPTS / name, *arguments],
            cwd=self.folder,
            env=os.environ | {"PATH": path, "HERE": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    def asked(self, *verbs: str) -> list[str]:
        """What was asked with one of the verbs, in order."""
        lines = (self.folder / "asked").read_text().splitlines()
        return [line for line in lines if set(verbs) & set(line.split())]


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


@pytest.mark.slow
def test_a_backup_starts_the_containers_that_ran_and_no_other(stack: Stack) -> None:
    stack.runs("a1=kafka", "b2=model", "c3=model")
    done = stack.script("backup", "copies/monday")
    assert done.returncode == 0, done.stderr
    assert stack.asked("stop", "start", "up") == ["compose --profile * stop", "start a1 b2 c3"]
    assert {file.name for file in (stack.folder / "copies/monday").iterdir()} == {
        *("VERSION", "SHA256SUMS", "kafka-data.tar.gz", "mysql-data.tar.gz"),
    }, "a relative path is one from where it is called"
    with tarfile.open(stack.folder / "copies/monday/mysql-data.tar.gz") as archive:
        assert archive.getnames() == ["docker"]


def test_a_backup_of_a_stack_that_does_not_run_starts_nothing(stack: Stack) -> None:
    assert stack.script("backup", "copy").returncode == 0
    assert stack.asked("stop", "start", "up") == []


def test_a_restore_takes_every_profile_down_and_brings_up_again_what_ran(stack: Stack) -> None:
    assert stack.script("backup", "copy").returncode == 0
    stack.runs("a1=kafka", "b2=model-gpu", "c3=model-gpu", "d4=mqtt", "e5=left-by-another-version")
    done = stack.script("restore", "copy")
    assert done.returncode == 0, done.stderr
    down, up = stack.asked("down", "up")
    assert down == "compose --profile * down --remove-orphans"
    assert up == (
        "compose up --detach --wait --scale kafka=1 --scale model-gpu=2 --scale mqtt=1 --scale model=0 "
        "kafka model-gpu mqtt"
    )
    assert up.removeprefix("compose ") in done.stdout, "what to run by hand should it end between"
    for volume in ("kafka-data", "mysql-data"):
        copied = (stack.folder / f"copy/{volume}.tar.gz").read_bytes()
        assert (stack.folder / f"restored-{volume}.tar.gz").read_bytes() == copied
    emptied = [line.split()[-4] for line in stack.asked("-delete")]
    assert emptied == ["/volumes/kafka-data", "/volumes/mysql-data"]


def test_a_restore_where_nothing_ran_brings_up_the_stack_without_profiles(stack: Stack) -> None:
    assert stack.script("backup", "copy").returncode == 0
    assert stack.script("restore", "copy").returncode == 0
    assert stack.asked("up") == ["compose up --detach --wait kafka model nginx"]


def test_a_damaged_copy_changes_nothing(stack: Stack) -> None:
    assert stack.script("backup", "copy").returncode == 0
    (stack.folder / "copy/kafka-data.tar.gz").write_bytes(b"not what was copied")
    assert "is damaged" in (refused := stack.script("restore", "copy")).stderr
    assert refused.returncode == 1
    assert stack.asked("down", "-delete", "up") == []


def test_a_restore_of_a_copy_that_lacks_a_volume_changes_nothing(stack: Stack) -> None:
    assert stack.script("backup", "copy").returncode == 0
    (stack.folder / "copy/mysql-data.tar.gz").unlink()
    sums = stack.folder / "copy/SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if "mysql" not in line))
    refused = stack.script("restore", "copy")
    assert refused.returncode == 1
    assert "of this version are kafka-data mysql-data" in refused.stderr
    assert stack.asked("down", "-delete", "up") == []
