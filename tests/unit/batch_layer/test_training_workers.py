"""Training on several workers outlives those that die, as long as it gets on."""

from typing import Any

import pytest
import torch

from batch_layer.training_workers import ATTEMPTS, train_on_workers, while_it_gets_on
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, NotReady


class Training:
    """Workers of which one dies in each attempt until so many epochs are trained, each of so many attempts' work."""

    def __init__(self, epochs: int, attempts_each: int) -> None:
        self.attempts, self._epochs, self._attempts_each = 0, epochs, attempts_each

    def attempt(self) -> str:
        self.attempts += 1
        if self.done() < self._epochs:
            raise RuntimeError("a long story\na worker died")
        return "trained"

    def done(self) -> int:
        return self.attempts // self._attempts_each


def test_workers_without_a_gpu_each_are_refused_before_they_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    nothing: Any = None
    given: Any = {"dataset": "", "snapshot": 0, "overrides": {}, "listener": nothing}
    with pytest.raises(ConfigurationError, match="3 workers cannot share this machine's 2 GPUs"):
        train_on_workers(nothing, settings, nothing, workers=3, **given)


def test_a_long_run_that_gets_on_may_lose_any_number_of_workers() -> None:
    training = Training(epochs=20, attempts_each=ATTEMPTS - 1)
    assert while_it_gets_on(training.attempt, training.done, "training") == "trained"
    assert training.attempts == 20 * (ATTEMPTS - 1)


def test_one_that_gets_no_further_ends() -> None:
    training = Training(epochs=1, attempts_each=ATTEMPTS + 1)
    with pytest.raises(NotReady, match="training broke off 3 times in a row: a worker died"):
        while_it_gets_on(training.attempt, training.done, "training")
    assert training.attempts == ATTEMPTS
