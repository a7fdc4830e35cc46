"""Drift of digits, with a trained model: noticed within 1,000 events; 50 unchanged windows raise no alarm.

Half of the test digits are what the model was judged by, the other half is what the stream draws from: of MNIST, and
of scikit-learn's few where it has to be quick. Legend: N rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
from examples.mnist import write_small_digits

DIGITS = Digits()
WINDOW = DIGITS.drift_window
FEW, MNIST = "few", pytest.param("MNIST", marks=pytest.mark.long)

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


def split(folder: Path, name: str, rows: int) -> Labelled:
    images, labels = (
        read_idx((folder / f"{name}-{kind}-ubyte.gz").read_bytes(), name) for kind in ("images-idx3", "labels-idx1")
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


def rotated(images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    turned: NDArray[np.uint8] = rotate(images_NHW, 30, axes=(2, 1), reshape=False, order=1)
    return turned


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A trained model, what it was judged by, and digits that neither it nor those have seen."""

    model: torch.nn.Module
    reference: Reference
    images_NHW: NDArray[np.uint8]
    labels_N: NDArray[np.int64]

    def live(self, rows: slice = slice(None), turned: Callable[..., NDArray[np.uint8]] = np.asarray) -> Live:
        """A stream of some of them."""
        return Live(self.model, turned(self.images_NHW[rows]), self.labels_N[rows])


@pytest.fixture(scope="module")
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    if request.param == "few":
        folder, given = tmp_path_factory.mktemp("few"), {"architecture": "mlp", "epochs": 5}
        write_small_digits(folder)
    else:
        folder, given = request.getfixturevalue("mnist"), {"epochs": 1}
    trainer = Trainer(DIGITS, all_hyperparameters(DIGITS, given), Compute(torch.device("cpu"), torch.float32))
    learned = rows_of(*split(folder, "train", 12_000))
    for epoch in range(given["epochs"]):
        trainer.train_epoch(epoch + 1, [Window.whole(learned)], lambda: len(learned))
    model = trainer.model.eval()
    images, labels = split(folder, "t10k", 10_000)
    order = np.random.default_rng(0).permutation(len(labels))  # the second half of MNIST's is easier than the first
    judged, live = np.array_split(order, 2)
    columns = columns_of(DIGITS, payload(images[judged]), rows_of(images[judged], labels[judged]), model)
    reference = made_reference("test", len(judged), columns)
    return Scene(model=model, reference=reference, images_NHW=images[live], labels_N=labels[live])


def p_of(reference: Reference, what: str, window: dict[str, Column]) -> NDArray[np.float64]:
    return np.array([each.p for each in compared(getattr(reference, what), window)])


@pytest.mark.slow
@pytest.mark.parametrize("scene", [FEW], indirect=True)
def test_a_reference_has_some_kilobytes(scene: Scene) -> None:
    assert len(scene.reference.model_dump_json()) < 10_000


@pytest.mark.parametrize("scene", [MNIST], indirect=True)
def test_fifty_windows_of_the_unchanged_stream_raise_no_alarm(scene: Scene) -> None:
    unchanged, highest = scene.live(), dict.fromkeys(WHATS, 0.0)
    for seed in range(10):
        random = np.random.default_rng(seed)
        for what in WHATS:
            detector = Detector()
            for _ in range(50):
                assert not detector.take(p_of(scene.reference, what, unchanged.window(what, random))), (seed, what)
                highest[what] = max(highest[what], detector.value)
    print(highest)


@pytest.mark.parametrize("scene", [MNIST], indirect=True)
@pytest.mark.parametrize("rows", [100, 300])
def test_a_version_that_has_learned_a_change_is_compared_with_its_few_recent_rows(scene: Scene, rows: int) -> None:
    changed, upright = scene.live(slice(3_000), rotated), scene.live(slice(1_000))
    few_upright = {what: {name: column[:rows] for name, column in of.items()} for what, of in upright.columns.items()}
    assert not differs(scene.reference, few_upright), "few rows like those of before do not take their place"
    few = {what: {name: column[:rows] for name, column in of.items()} for what, of in changed.columns.items()}
    assert differs(scene.reference, few)
    own, random = made_reference("recent", rows, few), np.random.default_rng(0)
    for what in WHATS:
        detector = Detector()
        assert not any(detector.take(p_of(own, what, changed.window(what, random))) for _ in range(50))
        turned_back = [detector.take(p_of(own, what, upright.window(what, random))) for _ in range(5)]
        assert any(turned_back) or what == "accuracy", "and the next change is noticed"


@pytest.mark.parametrize("scene", [FEW, MNIST], indirect=True)
@pytest.mark.parametrize("turned", [rotated, np.invert], ids=["rotated by 30°", "inverted"])
def test_a_change_is_noticed_within_a_thousand_events(scene: Scene, turned: Callable[..., NDArray[np.uint8]]) -> None:
    unchanged, changed = scene.live(), scene.live(slice(1_000), turned)
    for seed in range(2):
        random, noticed = np.random.default_rng(seed), {}
        for what in WHATS:
            detector = Detector()
            assert not any(detector.take(p_of(scene.reference, what, unchanged.window(what, random))) for _ in range(5))
            for events in range(WINDOW, 1_000, WINDOW):
                window = changed.window(what, random)
                if detector.take(p_of(scene.reference, what, window)):
                    noticed[what] = events + WINDOW  # its first window may have been half full of those before
                    assert named(compared(getattr(scene.reference, what), window))
                    break
        print(turned.__name__, noticed)
        assert noticed.keys() >= {"inputs", "predictions"}
