"""Handwritten digits: MNIST, and four networks of the literature: the default is a CNN of 1,256,080 parameters."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
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
    hyperparameters = dict(  # noqa: C408, RUF012
        epochs=4, batch_size=128, learning_rate=2e-3, weight_decay=1e-4, architecture="cnn", hidden=500
    )
    search_space = {  # noqa: RUF012
        "learning_rate": LogUniform(3e-4, 1e-2),
        "batch_size": Choice((64, 128, 256)),
        "architecture": Choice(("cnn", "lenet-5", "mlp", "perceptron")),
    }

    def examples(self, source: Source, raw: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
        images_NHW, labels_N = (read_idx(raw[name], name) for name in source.objects)
        for i, (image_HW, label) in enumerate(zip(images_NHW, labels_N, strict=True)):
            yield {"event_id": f"{source.split}-{i:05}", "image": image_HW.tobytes(), "label": int(label)}

    def transform(self, batch: pa.RecordBatch) -> NDArray[np.float32]:
        pixels = np.frombuffer(b"".join(batch["image"].to_pylist()), dtype=np.uint8)
        return _NORMALISED[pixels].reshape(-1, 1, 28, 28)

    def build_model(self, *, architecture: str = "cnn", hidden: int = 500) -> Any:
        from torch import nn

        convolutions, sizes = {  # (filters, padding) of 5×5 convolutions, and sizes of the dense layers behind them
            "perceptron": ((), (784, 10)),
            "mlp": ((), (784, 128, 128, 10)),
            "lenet-5": (((6, 2), (16, 0)), (400, 120, 84, 10)),
            "cnn": (((20, 2), (50, 2)), (2450, hidden, 10)),
        }[architecture]
        layers, channels = [], 1
        for filters, padding in convolutions:
            layers += [nn.Conv2d(channels, filters, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)]
            channels = filters
        layers.append(nn.Flatten())
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
