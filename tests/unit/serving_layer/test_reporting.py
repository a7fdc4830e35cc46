"""What the writers of the real-time view have done, added up."""

from collections.abc import Sequence
from datetime import timedelta

from deeplambda.clock import now
from serving_layer.views.reporting import Figures
from serving_layer.views.rows import Row


def row(application: str, age_s: float, *, replayed: bool = False) -> Row:
    return Row(application, "e-1", 0, 0, now() - timedelta(seconds=age_s), replayed, "")


def test_an_application_whose_rows_are_late_is_told_from_the_others() -> None:
    figures = Figures()
    batches: Sequence[Sequence[Row]] = (
        [row("digits", 1), row("fraud", 60), row("fraud", 4_000, replayed=True)],
        [row("fraud", 90)],
    )
    for rows in batches:
        figures.stored(len(rows), rows, took_s=0.01)
    taken, store_s, event_s = figures.drain()
    assert (taken, len(store_s)) == (4, 2)
    assert {name: len(seconds) for name, seconds in event_s.items()} == {"digits": 1, "fraud": 2}
    assert min(event_s["fraud"]) >= 60, "what was scored again is late for another reason"
    assert figures.drain() == (0, [], {})
