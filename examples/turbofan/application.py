"""Turbofan: how many flights are left to an engine, from its sensors' last 30 readings? Data: C-MAPSS FD001 (Saxena and
Goebel, 2008). Sensors, window, cap, network: Li, Ding and Sun, Reliability Engineering and System Safety 172 (2018).
"""

import gzip
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from deeplambda.application import Application, Event, LogUniform
from deeplambda.features import Features, Tensor
from deeplambda.objective import Regression
from deeplambda.sources import BySource, Source

_SENSORS = (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)  # the other seven stand still in FD001
_TEST = ("test_FD001.txt.gz", "RUL_FD001.txt.gz")  # readings, and flights left at their end
_WINDOW, _CAP = 30, 125  # flights; with more than 125 left, an engine shows no wear that could be learned from


class FlightEnded(Event):
    engine: str
    readings: Annotated[list[float], Field(min_length=420, max_length=420)]  # 14 a flight, the oldest first


class Turbofan(Application):
    name = "turbofan"
    event = FlightEnded
    sources = (Source(split="train", objects=("train_FD001.txt.gz",)), Source(split="test", objects=_TEST))
    splits = BySource(group="engine")  # neighbouring windows are nearly equal: no engine may be in two splits
    features = Tensor("float32", (len(_SENSORS), _WINDOW))
    objective = Regression(minimum=0, maximum=_CAP)
    metrics = ("rmse", "mae")
    hyperparameters = {"epochs": 8, "batch_size": 128, "learning_rate": 2e-3, "weight_decay": 0.01, "members": 3}  # noqa: RUF012
    search_space = {"learning_rate": LogUniform(5e-4, 5e-3)}  # noqa: RUF012

    def examples(self, source: Source, raw: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
        flights, *left = (np.loadtxt(gzip.decompress(raw[name]).decode().splitlines()) for name in source.objects)
        for unit in np.unique(flights[:, 0]).astype(int):
            readings = flights[flights[:, 0] == unit][:, [4 + sensor for sensor in _SENSORS]]
            engine, last, beyond = f"{source.split}-{unit}", len(readings), int(left[0][unit - 1]) if left else 0
            for end in (last,) if left else range(_WINDOW, last + 1):  # a test engine flew on, and is judged once
                window, label = readings[end - _WINDOW : end].ravel().tolist(), min(last - end + beyond, _CAP)
                yield {"event_id": f"{engine}-{end}", "engine": engine, "readings": window, "label": label}

    def fit(self, batches: Iterator[pa.RecordBatch]) -> Features:
        flights_NS = np.concatenate([batch["readings"].flatten() for batch in batches]).reshape(-1, len(_SENSORS))
        return {"low": flights_NS.min(axis=0), "high": flights_NS.max(axis=0)}

    def transform(self, batch: pa.RecordBatch, seen: Features) -> Any:
        readings_NTS = batch["readings"].flatten().to_numpy().reshape(-1, _WINDOW, len(_SENSORS))
        scaled_NTS = 2 * (readings_NTS - seen["low"]) / np.maximum(seen["high"] - seen["low"], 1e-9) - 1
        return scaled_NTS.transpose(0, 2, 1).clip(-3, 3).astype(np.float32)  # however broken a sensor is

    def build_model(self, *, members: int = 3) -> Any:
        from torch import Tensor, nn

        def member() -> nn.Module:  # filters along time alone, the same for each sensor
            layers = [nn.Unflatten(1, (1, len(_SENSORS)))]
            for inputs, outputs, length in ((1, 10, 9), (10, 10, 9), (10, 10, 9), (10, 10, 9), (10, 1, 3)):
                layers += [nn.Conv2d(inputs, outputs, (1, length), padding="same"), nn.Tanh()]
            return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(), nn.Linear(420, 100), nn.Tanh(), nn.Linear(100, 1))

        class Committee(nn.ModuleList):  # three networks trained for 8 epochs are better than one
            def forward(self, readings_NST: Tensor) -> Tensor:  # flights, of outputs that deviate by about 1
                return _CAP / 2 + 40 * sum(each(readings_NST) for each in self) / len(self)

        return Committee(member() for _ in range(members))
