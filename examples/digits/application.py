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
    metrics = {"accuracy": accuracy, "negative_log_loss": negative_log_loss}  # noqa: RUF012
    hyperparameters = {"epochs": 4, "batch_size": 128, "learning_rate": 2e-3, "weight_decay": 1e-4, "hidden": 500}  # noqa: RUF012
    search_space = {"learning_rate": LogUniform(3e-4, 1e-2), "batch_size": Choice((64, 128, 256))}  # noqa: RUF012

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
