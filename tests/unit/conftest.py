"""Settings of a stack in a folder of the test's own, whatever the environment says."""

import os
import sys
from pathlib import Path

import pytest

from deeplambda.config import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in list(os.environ):
        if name.startswith("DEEPLAMBDA_"):
            monkeypatch.delenv(name)
    return Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Models of tests are small: several threads wait for each other longer than they compute. As torch's setting, not
    the environment's, for the stack of other tests inherits that."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
