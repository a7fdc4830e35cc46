"""Settings of a stack in a folder of the test's own, whatever the environment says."""

import os
from pathlib import Path

import pytest

from deeplambda.config import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in list(os.environ):
        if name.startswith("DEEPLAMBDA_"):
            monkeypatch.delenv(name)
    return Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")
