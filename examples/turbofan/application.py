"""Turbofan: how many flights are left to an engine, from its sensors' last 30 readings.

Data: C-MAPSS FD001 (Saxena and Goebel, 2008). Sensors, window, cap and the idea of the network: Li, Ding and Sun,
Remaining useful life estimation in prognostics using deep convolution neural networks (2018).
"""

import gzip
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from deeplambda.application import Application, Event, LogUniform
from deeplambda.features import Tensor
from deeplambda.objective import Regression
from deeplambda.sources import BySource, Source

_SENSORS = (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)  # the other seven stand still in FD001
_WINDOW, _CAP = 30, 125  # flights; with more than 125 left, an engine shows no wear that could be learned from


class FlightEnded(Event):
    engine: str
    readings: Annotated[list[float], Field(min_length=420, max_length=420)]  # 14 a flight, the oldest first


class Turbofan(Application):
    name = "turbofan"
    event = FlightEnded
    sources = (
        Source(split="train", objects=("train_FD001.txt.gz",)),
        Source(split="test", objects=("test_FD001.txt.gz", "RUL_FD001.txt.gz")),
    )
    splits = BySource(group="engine")  # neighbouring windows are nearly equal: no engine may be in two splits
    features = Tensor("float32", (len(_SENSORS), _WINDOW))
    objective = Regression(minimum=0, maximum=_CAP)
    metrics = ("rmse", "mae")
    hyperparameters = {"epochs": 20, "batch_size": 128, "learning_rate": 2e-3, "weight_decay": 0.01}  # noqa: RUF012
    search_space = {"learning_rate": LogUniform(5e-4, 5e-3)}  # noqa: RUF012

    def examples(self, source: Source, raw: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
        flights, *left = (np.loadtxt(gzip.decompress(raw[name]).decode().splitlines()) for name in source.objects)
        for unit in np.unique(flights[:, 0]).astype(int):
            readings = flights[flights[:, 0] == unit][:, [4 + sensor for sensor in _SENSORS]]
            engine, last = f"{source.split}-{unit}", len(readings)
            beyond = int(left[0][unit - 1]) if left else 0  # what a test engine flew after its record ends, where
            for end in (last,) if left else range(_WINDOW, last + 1):  # it is judged once
                window, label = readings[end - _WINDOW : end].ravel().tolist(), min(last - end + beyond, _CAP)
                yield {"event_id": f"{engine}-{end}", "engine": engine, "readings": window, "label": label}

    def fit(self, batches: Iterator[pa.RecordBatch]) -> dict[str, NDArray[np.float64]]:
        ends = np.array([(r.min(axis=(0, 1)), r.max(axis=(0, 1))) for r in map(self._readings, batches)])
        return {"low": ends[:, 0].min(axis=0), "high": ends[:, 1].max(axis=0)}

    def transform(self, batch: pa.RecordBatch, seen: dict[str, NDArray[np.float64]]) -> NDArray[np.float32]:
        scaled_NTS = 2 * (self._readings(batch) - seen["low"]) / np.maximum(seen["high"] - seen["low"], 1e-9) - 1
        return scaled_NTS.transpose(0, 2, 1).clip(-3, 3).astype(np.float32)  # however broken a sensor is

    def _readings(self, batch: pa.RecordBatch) -> NDArray[np.float64]:
        return batch["readings"].flatten().to_numpy().reshape(-1, _WINDOW, len(_SENSORS))

    def build_model(self) -> Any:
        from torch import nn

        first = (nn.Conv1d(len(_SENSORS), 32, 5, padding="same"), nn.ReLU(), nn.AvgPool1d(2))
        second = (nn.Conv1d(32, 32, 5, padding="same"), nn.ReLU(), nn.AvgPool1d(3), nn.Flatten(), nn.Dropout(0.3))
        return nn.Sequential(*first, *second, nn.Linear(32 * 5, 64), nn.ReLU(), nn.Linear(64, 1))
