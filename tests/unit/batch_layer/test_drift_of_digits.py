"""Drift of MNIST's digits, with a trained model: noticed within 1,000 events; 50 unchanged windows raise no alarm.

Half of the test digits are what the model was judged by, the other half is what the stream draws from. Legend: N rows.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import rotate

from batch_layer.compute import Compute
from batch_layer.drift import Detector, compared, named
from batch_layer.monitor import WHATS
from batch_layer.reference import columns_of, differs, made_reference
from batch_layer.rows import Rows, Window
from batch_layer.summaries import Column, Reference
from batch_layer.trainer import Trainer, all_hyperparameters
from deeplambda.idx import read_idx
from examples.digits.application import Digits

DIGITS = Digits()
WINDOW = DIGITS.drift_window
pytestmark = pytest.mark.long


def split(mnist: Path, name: str, rows: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = (
        read_idx((mnist / f"{name}-{kind}-ubyte.gz").read_bytes(), name) for kind in ("images-idx3", "labels-idx1")
    )
    return images[:rows], labels[:rows].astype(np.int64)


def payload(images_NHW: NDArray[np.uint8]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"image": [image.tobytes() for image in images_NHW]})


def rows_of(images_NHW: NDArray[np.uint8], labels_N: NDArray[np.int64]) -> Rows:
    return Rows.of({"features": DIGITS.transform(payload(images_NHW))}, labels_N)


class Live:
    """What a stream of some digits looks like to the monitor."""

    def __init__(self, model: torch.nn.Module, images_NHW: NDArray[np.uint8], labels_N: NDArray[np.int64]) -> None:
        self.columns = columns_of(DIGITS, payload(images_NHW), rows_of(images_NHW, labels_N), model)
        self.rows = len(labels_N)

    def window(self, what: str, random: np.random.Generator) -> dict[str, Column]:
        chosen = random.integers(0, self.rows, WINDOW)
        return {name: column[chosen] for name, column in self.columns[what].items()}


@pytest.fixture(scope="module")
def model(mnist: Path) -> torch.nn.Module:
    trainer = Trainer(DIGITS, all_hyperparameters(DIGITS, {"epochs": 1}), Compute(torch.device("cpu"), torch.float32))
    learned = rows_of(*split(mnist, "train", 12_000))
    trainer.train_epoch(1, [Window.whole(learned)], lambda: len(learned))
    return trainer.model.eval()


@pytest.fixture(scope="module")
def judged(mnist: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The test digits in an order of our own, for the second half of MNIST's is easier than the first."""
    images, labels = split(mnist, "t10k", 10_000)
    order = np.random.default_rng(0).permutation(len(labels))
    return images[order], labels[order]


@pytest.fixture(scope="module")
def reference(model: torch.nn.Module, judged: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Reference:
    images, labels = (each[:5_000] for each in judged)
    return made_reference("test", len(labels), columns_of(DIGITS, payload(images), rows_of(images, labels), model))


@pytest.fixture(scope="module")
def unchanged(model: torch.nn.Module, judged: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Live:
    return Live(model, *(each[5_000:] for each in judged))


def turned_back(
    model: torch.nn.Module, judged: tuple[NDArray[np.uint8], NDArray[np.int64]], what: str
) -> list[dict[str, Column]]:
    """Five windows of digits that are upright."""
    live, random = Live(model, *(each[5_000:6_000] for each in judged)), np.random.default_rng(1)
    return [live.window(what, random) for _ in range(5)]


def p_of(reference: Reference, what: str, window: dict[str, Column]) -> NDArray[np.float64]:
    return np.array([each.p for each in compared(getattr(reference, what), window)])


def test_a_reference_has_some_kilobytes(reference: Reference) -> None:
    assert len(reference.model_dump_json()) < 10_000


@pytest.mark.parametrize("seed", range(10))
def test_fifty_windows_of_the_unchanged_stream_raise_no_alarm(reference: Reference, unchanged: Live, seed: int) -> None:
    random, highest = np.random.default_rng(seed), {}
    for what in WHATS:
        detector = Detector()
        assert not any(detector.take(p_of(reference, what, unchanged.window(what, random))) for _ in range(50))
        highest[what] = detector.value
    print(seed, highest)


@pytest.mark.parametrize("rows", [100, 300])
def test_a_version_that_has_learned_a_change_is_compared_with_its_few_recent_rows(
    reference: Reference,
    model: torch.nn.Module,
    judged: tuple[NDArray[np.uint8], NDArray[np.int64]],
    rows: int,
) -> None:
    images, labels = judged
    rotated = Live(model, rotate(images[5_000:8_000], 30, axes=(2, 1), reshape=False, order=1), labels[5_000:8_000])
    upright = Live(model, images[5_000 : 5_000 + rows], labels[5_000 : 5_000 + rows])
    assert not differs(reference, upright.columns), "few rows like those of before do not take their place"
    few = {what: {name: column[:rows] for name, column in found.items()} for what, found in rotated.columns.items()}
    assert differs(reference, few)
    own, random = made_reference("recent", rows, few), np.random.default_rng(0)
    for what in WHATS:
        detector = Detector()
        assert not any(detector.take(p_of(own, what, rotated.window(what, random))) for _ in range(50))
        noticed = [
            detector.take(p_of(own, what, upright_window)) for upright_window in turned_back(model, judged, what)
        ]
        assert any(noticed) or what == "accuracy", "and the next change is noticed"


@pytest.mark.parametrize("change", ["rotated by 30°", "inverted"])
@pytest.mark.parametrize("seed", range(3))
def test_a_change_is_noticed_within_a_thousand_events(
    reference: Reference,
    unchanged: Live,
    model: torch.nn.Module,
    judged: tuple[NDArray[np.uint8], NDArray[np.int64]],
    change: str,
    seed: int,
) -> None:
    images, labels = (each[5_000:6_000] for each in judged)
    turned = rotate(images, 30, axes=(2, 1), reshape=False, order=1) if change.startswith("rotated") else 255 - images
    changed, random, noticed = Live(model, turned, labels), np.random.default_rng(seed), {}
    for what in WHATS:
        detector = Detector()
        assert not any(detector.take(p_of(reference, what, unchanged.window(what, random))) for _ in range(20))
        for events in range(WINDOW, 2_000, WINDOW):
            window = changed.window(what, random)
            if detector.take(p_of(reference, what, window)):
                noticed[what] = events + WINDOW  # its first window may have been half full of those before
                assert named(compared(getattr(reference, what), window))
                break
    print(change, noticed)
    assert max(noticed[what] for what in ("inputs", "predictions")) <= 1_000
