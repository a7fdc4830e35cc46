"""Versions of 0.1.0, whose code was not kept, are served by the deployed code where it is theirs."""

import hashlib
import shutil
from pathlib import Path

import pytest

from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.state.card import Card
from deeplambda.state.versions import load_code
from deeplambda.testing import FakeStore
from tests.unit.batch_layer.test_gate import card

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    shutil.copytree(EXAMPLES / "digits", tmp_path / "digits")
    (tmp_path / "digits" / "README.md").write_text("Handwritten digits.")
    return Settings(data_dir=tmp_path / "data", applications_dir=tmp_path)


def of_0_1_0(settings: Settings) -> Card:
    """A version of the code that is deployed now, as 0.1.0 named it: by its Python files."""
    digest = hashlib.sha256()
    for path in sorted((settings.applications_dir / "digits").glob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return card(1, 0.9, code_version=digest.hexdigest()[:12])


def test_a_version_of_0_1_0_is_served_by_its_code_though_other_files_lie_beside_it(settings: Settings) -> None:
    loaded = load_code(FakeStore(), settings, of_0_1_0(settings))  # type: ignore[arg-type]
    assert loaded.application.name == "digits"


def test_a_version_of_0_1_0_is_not_served_by_other_code(settings: Settings) -> None:
    before = of_0_1_0(settings)
    (settings.applications_dir / "digits" / "more.py").write_text("")
    with pytest.raises(BadInput, match="was not kept"):
        load_code(FakeStore(), settings, before)  # type: ignore[arg-type]
