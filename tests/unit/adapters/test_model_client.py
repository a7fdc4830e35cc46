"""The size of the parts in which a large batch is sent follows what the service answers in time."""

import numpy as np
import pytest

from deeplambda.adapters.model_service import ModelClient, Scored, TooLarge
from deeplambda.config import load_settings
from deeplambda.errors import DeadlinePassed, DeepLambdaError
from deeplambda.features import Features, row_count

MOST = 8
"""Rows that are answered in time."""


def rows(count: int) -> Features:
    return {"features": np.zeros((count, 16), np.float32)}


def served(
    monkeypatch: pytest.MonkeyPatch, refusal: DeepLambdaError, width: int, **options: float
) -> tuple[ModelClient, list[int]]:
    """A client of a service that answers up to `MOST` rows, with `width` outputs each; and how many each part had."""
    client, asked = ModelClient(load_settings(), "digits", **options), list[int]()

    def score(features: Features, featurizer_id: str, deadline: float) -> Scored:
        asked.append(row_count(features))
        if asked[-1] > MOST:
            raise refusal
        return Scored(versions_N=np.ones(asked[-1], np.int64), outputs=np.zeros((asked[-1], width), np.float32))

    monkeypatch.setattr(client, "_score", score)
    return client, asked


def test_parts_grow_again_with_answers_to_parts_of_their_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    client, asked = served(monkeypatch, DeadlinePassed("too many"), 1)
    assert len(client.predict(rows(64), "f").outputs) == 64
    for _ in range(50):
        client.predict(rows(1), "f")
    asked.clear()
    client.predict(rows(64), "f")
    assert max(asked) <= 2 * MOST
    assert MOST in asked


def test_parts_whose_reply_would_be_too_large_are_halved_once_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    client, asked = served(monkeypatch, TooLarge("too many outputs"), 9, patience_s=0)
    assert client.predict(rows(64), "f").outputs.shape == (64, 9)
    assert client.output_bytes == 36
    asked.clear()
    for _ in range(3):
        client.predict(rows(64), "f")
    assert max(asked) <= MOST
    monkeypatch.setattr(f"{__name__}.MOST", 0)
    with pytest.raises(TooLarge):
        client.predict(rows(1), "f")
