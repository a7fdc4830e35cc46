"""How many labels have come."""

from types import SimpleNamespace
from typing import Any

import pytest

from batch_layer.news import News


def test_labels_that_have_expired_since_the_last_generation_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka keeps a week of them, and the archive all: few a day would else never be enough."""
    offsets: dict[Any, dict[int, int]] = {"firsts": {0: 8_000, 1: 40}, "ends": {0: 9_000, 1: 50}}
    news = object.__new__(News)
    news._labels = SimpleNamespace(beginning_offsets="firsts", end_offsets="ends")  # type: ignore[assignment]
    monkeypatch.setattr(News, "_offsets", lambda self, application, ask: offsets[ask])
    assert news.labels_since("digits", {0: 500, 1: 45}) == 8_500 + 5
    assert news.labels_since("digits", {}) == 1_000 + 10, "what was there before anybody looked is not known"
    assert news.labels_since("digits", {0: 9_500, 1: 50}) == 0, "the topic was made anew"
