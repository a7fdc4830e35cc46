"""When a recomputation drops too many events."""

import pytest

from batch_layer.refusals import Dropped, check_share
from deeplambda.errors import TooManyRefused


@pytest.mark.parametrize(("events", "predicted"), [(0, 0), (0, 1_000), (10, 1_000)])
def test_few_losses_are_accepted(events: int, predicted: int) -> None:
    check_share("digits", 7, Dropped(events=events, predicted=predicted), accepted_share=0.01)


def test_many_are_refused_with_what_to_do() -> None:
    with pytest.raises(TooManyRefused) as refusal:
        check_share("digits", 7, Dropped(events=250, predicted=1_000), accepted_share=0.01)
    assert "digits/7 refuses 250 of 1,000 events" in refusal.value.message
    assert "lake.digits.quarantine" in refusal.value.remedy
    accepted = float(refusal.value.remedy.rpartition("--accept-refused ")[2].strip("'"))
    check_share("digits", 7, Dropped(events=250, predicted=1_000), accepted_share=accepted)
