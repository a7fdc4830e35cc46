"""Tests are marked by folder. Those beyond unit and contract share one real stack, on free ports."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deeplambda.config import Settings, load_settings

HERE = Path(__file__).parent
ROOT = HERE.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.relative_to(HERE).parts[0])


@pytest.fixture(scope="session")
def deeplambda() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs a command of the platform as a person would; fails the test with its output when it fails."""
    command = Path(sys.executable).with_name("deeplambda")

    def run(*arguments: str, check: bool = True, timeout_s: float = 600) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [command, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=timeout_s, check=False
        )
        if check and done.returncode:
            pytest.fail(f"deeplambda {' '.join(arguments)} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture(scope="session")
def stack(deeplambda: Callable[..., "subprocess.CompletedProcess[str]"]) -> Iterator[Settings]:
    """The settings of a running full stack.

    `DEEPLAMBDA_TEST_DATA_DIR` names the data folder of a stack that runs already; it is used and left as it is.
    """
    running = os.environ.get("DEEPLAMBDA_TEST_DATA_DIR")
    folder = Path(running or tempfile.mkdtemp(prefix="deeplambda-"))  # short: sockets have a limit on their path
    data_dir = folder if running else folder / ".deeplambda"
    os.environ["DEEPLAMBDA_DATA_DIR"] = str(data_dir)
    os.environ["DEEPLAMBDA_APPLICATIONS_DIR"] = str(ROOT / "examples")
    if not running:
        deeplambda("up", "--free-ports")
    load_settings.cache_clear()
    try:
        yield load_settings()
    finally:
        if not running:
            deeplambda("down")
            shutil.rmtree(folder)
