"""Generated grey PNGs of 16×16, bright or dark."""

from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deeplambda.application import Application, Event
from deeplambda.features import Tensor
from deeplambda.fields import grey_image
from deeplambda.objective import Classification
from deeplambda.sources import ByHash, Images


class PictureTaken(Event):
    image: Annotated[bytes, *grey_image(16, 16)]


class Pictures(Application):
    name = "pictures"
    event = PictureTaken
    sources = (Images("pictures/"),)
    splits = ByHash(train=0.9, test=0.1)
    features = Tensor("float32", (1, 16, 16))
    objective = Classification(("dark", "bright"))
    metrics = "accuracy"
    hyperparameters = {"epochs": 1, "batch_size": 256, "learning_rate": 1e-3, "weight_decay": 0.0}  # noqa: RUF012

    def transform(self, batch: pa.RecordBatch) -> NDArray[np.float32]:
        grey_N = np.frombuffer(b"".join(batch["image"].to_pylist()), np.uint8)
        return (grey_N.astype(np.float32) / 255).reshape(-1, 1, 16, 16)

    def build_model(self) -> Any:
        from torch import nn

        layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(128, 2)
        return nn.Sequential(*layers)
