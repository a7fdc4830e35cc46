"""What applications may import of the platform: docs/applications.md lists it, and it stays, for a version keeps its
code and imports the platform that runs then.
"""

import ast
import importlib
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deeplambda.application import event_of, payload_batch
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.idx import write_idx
from deeplambda.loading import pack_application
from deeplambda.metrics import measured
from deeplambda.objective import labels_of
from deeplambda.records.featurizer import Featurizer
from deeplambda.testing.draft import write_draft
from deeplambda.testing.draft_templates import IMAGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "applications.md").read_text()
DIGITS_OF_0_1_0 = '''\
"""Handwritten digits: MNIST, and the convolutional network of the literature (1,256,080 parameters)."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deeplambda.application import Application, Choice, Event, LogUniform, Source
from deeplambda.fields import grey_image
from deeplambda.idx import read_idx
from deeplambda.objective import Classification, accuracy, negative_log_loss

_NORMALISED = ((np.arange(256) / 255 - 0.1307) / 0.3081).astype(np.float32)  # MNIST's mean and standard deviation


class DigitDrawn(Event):
    """Somebody drew a digit."""

    image: Annotated[bytes, *grey_image(28, 28)]


class Digits(Application):
    """One grey 28×28 image in, one of ten digits out."""

    name = "digits"
    event = DigitDrawn
    sources = (
        Source(split="train", objects=("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")),
        Source(split="test", objects=("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")),
    )
    objective = Classification(classes="0123456789")
    metrics = {"accuracy": accuracy, "negative_log_loss": negative_log_loss}
    hyperparameters = {"epochs": 4, "batch_size": 128, "learning_rate": 2e-3, "weight_decay": 1e-4, "hidden": 500}
    search_space = {"learning_rate": LogUniform(3e-4, 1e-2), "batch_size": Choice((64, 128, 256))}

    def examples(self, source: Source, raw: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
        images_NHW, labels_N = (read_idx(raw[name], name) for name in source.objects)
        for i, (image_HW, label) in enumerate(zip(images_NHW, labels_N, strict=True)):
            yield {"event_id": f"{source.split}-{i:05}", "image": image_HW.tobytes(), "label": int(label)}

    def transform(self, batch: pa.RecordBatch) -> NDArray[np.float32]:
        pixels = np.frombuffer(b"".join(batch["image"].to_pylist()), dtype=np.uint8)
        return _NORMALISED[pixels].reshape(-1, 1, 28, 28)

    def build_model(self, *, hidden: int = 500) -> Any:
        from torch import nn

        return nn.Sequential(
            *(nn.Conv2d(1, 20, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(20, 50, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(50 * 7 * 7, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
        )
'''
"""As that version has it, but for notes to the linter. Versions with this code are on S3, so it is never changed."""


def listed() -> set[tuple[str, str]]:
    """(module, name) of each that the page lists."""
    table = PAGE.partition("**Imports.**")[2].partition("**What travels")[0]
    rows = re.findall(r"^\| `(deeplambda\.\w+)` \| (.*) \|$", table, re.MULTILINE)
    return {(module, name) for module, names in rows for name in re.findall(r"`(\w+)`", names)}


def imported(source: str) -> set[tuple[str, str]]:
    """(module, name) of each that a source text imports of the platform."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    found = {(node.module or "", name.name) for node in nodes for name in node.names}
    return {(module, name) for module, name in found if module.startswith("deeplambda")}


def applications_of_pages() -> Iterator[str]:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        yield from (block for block in blocks if re.search(r"^from deeplambda.* Application\b", block, re.MULTILINE))


def test_every_name_that_is_listed_is_there() -> None:
    assert not {(module, name) for module, name in listed() if not hasattr(importlib.import_module(module), name)}


def test_what_examples_pages_and_old_versions_import_is_listed() -> None:
    sources = [path.read_text() for path in sorted((ROOT / "examples").glob("*/*.py"))]
    of_pages = list(applications_of_pages())
    assert len(sources) >= 4
    assert of_pages
    for source in (*sources, *of_pages, DIGITS_OF_0_1_0):
        assert imported(source) <= listed()


def test_what_drafts_import_is_listed(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = ["engine", "noise", "heat", "cold", "oil", "smoke", "quiet", "loud", "slow", "fast"]
    said = [" ".join(draw.choices(words, k=6)) for _ in range(240)]
    rows = [f"{draw.random()},{draw.choice('ab')},{text},{draw.choice('xy')}" for text in said]
    (tmp_path / "rows.csv").write_text("\n".join(["load,maker,said,kind", *rows]) + "\n")
    table = write_draft("rows", tmp_path / "rows.csv", tmp_path, "kind").file.read_text()
    images = re.sub(r"\{imports\}", "ByHash, Images", IMAGES.partition("class ")[0])
    assert {"Standardization", "Categories", "Vocabulary"} <= {name for _, name in imported(table)}
    assert imported(table) | imported(images) <= listed()


@pytest.mark.slow
def test_an_application_of_0_1_0_still_does_what_it_did(tmp_path: Path) -> None:
    import torch

    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "application.py").write_text(DIGITS_OF_0_1_0)
    packed = pack_application("digits", Settings(data_dir=tmp_path / "data", applications_dir=tmp_path))
    digits = packed.load()
    images_NHW = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    (source, _), labels_N = digits.sources, np.array([7, 1, 3], dtype=np.uint8)
    raw = dict(zip(source.objects, (write_idx(images_NHW), write_idx(labels_N)), strict=True))
    rows = list(digits.examples(source, raw))
    events = [event_of(digits.event, {"occurred_at": now()} | row) for row in rows]
    featurizer = Featurizer(digits, code_version=packed.code_version)
    found = featurizer.isolated(payload_batch(digits.event, events))
    assert found.rows_N == [0, 1, 2]
    (features_N1HW,) = found.features.values()
    assert np.allclose(features_N1HW, ((images_NHW / 255 - 0.1307) / 0.3081)[:, None], atol=1e-6)
    outputs = digits.build_model(hidden=500)(torch.from_numpy(features_N1HW)).detach().numpy()
    answers = digits.objective.decode(outputs)
    assert answers.values == [str(best) for best in outputs.argmax(axis=1)]
    metrics = measured(digits, labels_of(digits.objective, [row["label"] for row in rows]), outputs)
    assert list(metrics) == ["accuracy", "negative_log_loss"]


@pytest.mark.parametrize("line", ["from deeplambda.sources import Gone", "import deeplambda.gone"])
def test_what_was_written_for_another_version_of_the_platform_is_told_so(tmp_path: Path, line: str) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "application.py").write_text(line)
    with pytest.raises(ConfigurationError, match=r"written for another version of the platform.*[gG]one") as told:
        pack_application("digits", Settings(data_dir=tmp_path / "data", applications_dir=tmp_path))
    assert "install" not in str(told.value)


@pytest.mark.parametrize("line", ["import left_pad", "from numpy import left_pad"])
def test_what_another_library_lacks_is_told_so(tmp_path: Path, line: str) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "application.py").write_text(line)
    with pytest.raises(ConfigurationError, match=r"not installed here.*left_pad.*install it"):
        pack_application("digits", Settings(data_dir=tmp_path / "data", applications_dir=tmp_path))
