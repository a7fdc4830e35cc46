"""When a recomputation drops too many events."""

import pytest

from batch_layer import gaps
from batch_layer.refusals import Dropped, check_share
from deeplambda.errors import TooManyRefused
from deeplambda.records.expiry import Gap


@pytest.mark.parametrize(("refused", "missing", "predicted"), [(0, 0, 0), (0, 0, 1_000), (10, 0, 1_000), (3, 7, 1_000)])
def test_few_losses_are_accepted(refused: int, missing: int, predicted: int) -> None:
    check_share("digits", 7, Dropped(refused=refused, missing=missing, predicted=predicted), accepted_share=0.01)


def test_many_are_refused_with_what_to_do() -> None:
    with pytest.raises(TooManyRefused) as refusal:
        check_share("digits", 7, Dropped(refused=250, predicted=1_000), accepted_share=0.01)
    assert "digits/7 refuses 250 of 1,000 events" in refusal.value.message
    assert "lake.digits.quarantine" in refusal.value.remedy
    accepted = float(refusal.value.remedy.rpartition("--accept-refused ")[2].strip("'"))
    check_share("digits", 7, Dropped(refused=250, predicted=1_000), accepted_share=accepted)


def test_events_that_the_archive_lacks_are_refused_with_what_to_do() -> None:
    with pytest.raises(TooManyRefused) as refusal:
        check_share("digits", 7, Dropped(refused=4, missing=10, predicted=1_000), accepted_share=0.01)
    expected = "digits/7 refuses 4 and lake.digits.events lacks 10 of 1,000 events that have a prediction (1.4%"
    assert expected in refusal.value.message
    assert "send those that the archive lacks again" in refusal.value.remedy
    assert refusal.value.remedy.endswith("--accept-refused 0.02'")


def test_gaps_are_asked_for_in_bounded_groups() -> None:
    short = [Gap(0, 3 * n, 3 * n + 1) for n in range(gaps._GAPS_AT_ONCE + 5)]
    long = Gap(1, 10, 10 + 2 * gaps._OFFSETS_AT_ONCE)
    groups = list(gaps.by_offsets([*short, Gap(0, 7, 7), long, Gap(2, 9, 4)]))
    sizes = [sum(gap.to_offset - gap.from_offset for gap in group) for group in groups]
    assert max(sizes) <= gaps._OFFSETS_AT_ONCE
    assert max(map(len, groups)) <= gaps._GAPS_AT_ONCE
    asked = [gap for group in groups for gap in group]
    assert asked[: len(short)] == short
    assert [gap.from_offset for gap in asked[len(short) + 1 :]] == [gap.to_offset for gap in asked[len(short) : -1]]
    assert (asked[len(short)].from_offset, asked[-1].to_offset) == (long.from_offset, long.to_offset)
