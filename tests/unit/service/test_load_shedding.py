"""A queue that was full stays short while too many come."""

import pytest

from deeplambda.service import load_shedding
from deeplambda.service.load_shedding import LoadShedder


def test_a_queue_that_was_full_takes_few_while_it_has_to_refuse() -> None:
    shedder = LoadShedder(few=2, most=4)
    assert not shedder.refuses(3)
    assert shedder.refuses(4)
    assert shedder.refuses(2)
    assert not shedder.refuses(1)


def test_a_queue_that_refused_nothing_for_a_while_may_be_long_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_shedding, "CALM_S", 0.0)
    shedder = LoadShedder(few=2, most=4)
    assert shedder.refuses(4)
    assert not shedder.refuses(3)
