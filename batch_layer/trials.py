"""Trials of a tuning as they stand on S3: what one that was broken off goes on from. Nothing is unpickled.

A trial is a description (JSON), which names the tensors (safetensors) of its last epoch and is written after them: one
that was cut off names those of the epoch before. Tensors that no description names any more are deleted.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from deeplambda.adapters.s3 import ObjectStore


class Trial(BaseModel):
    """One draw, and what became of it.

    drawn: its values from the search space. metrics: after each epoch so far, of the rows that trials are compared on.
    ended: whether it trains no more. failure: the sentence that says why its last epoch has no metric.
    tensors_sha256: of its last epoch, until it has ended.
    """

    model_config = ConfigDict(frozen=True)

    drawn: dict[str, Any]
    metrics: tuple[float, ...] = ()
    ended: bool = False
    failure: str = ""
    tensors_sha256: str = ""

    @property
    def epochs(self) -> int:
        """That it has trained."""
        return len(self.metrics)

    @property
    def key(self) -> str:
        """Equal for equal draws."""
        return key_of(self.drawn)


def key_of(drawn: Mapping[str, Any]) -> str:
    """A draw's key: 16 hex digits."""
    return hashlib.sha256(to_json(sorted(drawn.items()))).hexdigest()[:16]


class TrialStore:
    """The trials of one study: of one data set, code, search space and fixed hyperparameters."""

    def __init__(self, store: ObjectStore, application: str, study: str) -> None:
        self._store, self._prefix = store, f"{application}/tuning/{study}/"

    def trials(self) -> list[Trial]:
        """Those that an earlier run has left, the longest first. Raises: NotReady, CorruptObject."""
        keys = [found.key for found in self._store.list(self._prefix) if found.key.endswith(".json")]
        trials = [Trial.model_validate_json(self._store.get(key)) for key in keys]
        return sorted(trials, key=lambda trial: (not trial.ended, -trial.epochs, trial.key))

    def tensors(self, trial: Trial) -> bytes:
        """Of the last epoch of a trial that has not ended. Raises: BadInput when they are gone, CorruptObject."""
        return self._store.get(self._tensors_key(trial), sha256=trial.tensors_sha256)

    def put(self, trial: Trial, tensors: bytes | None, before: Trial) -> Trial:
        """Store a trial's new state, of which `before` was the last; with the hash of `tensors`. Raises: NotReady."""
        if tensors is not None:
            digest = hashlib.sha256(tensors).hexdigest()
            trial = trial.model_copy(update={"tensors_sha256": digest})
            self._store.put(self._tensors_key(trial), tensors)
        self._store.put(f"{self._prefix}{trial.key}.json", to_json(trial))
        if before.tensors_sha256 not in ("", trial.tensors_sha256):
            self._store.delete([self._tensors_key(before)])
        return trial

    def _tensors_key(self, trial: Trial) -> str:
        return f"{self._prefix}{trial.key}-{trial.tensors_sha256[:12]}.safetensors"
