"""What expired before a reader came to it, by values."""

from datetime import UTC, datetime, timedelta

import pytest

from deeplambda.records.expiry import Gap, Reader, cuts, gap_of, gaps, last_told_before, left, waiting
from deeplambda.records.lifecycle import RecordsExpired, RecordsSkipped, TopicTruncated

ARCHIVE = Reader("digits", "archive", "digits.events")


def expired(from_offset: int, to_offset: int, reader: Reader = ARCHIVE, partition: int = 0) -> RecordsExpired:
    return RecordsExpired(
        application=reader.application,
        reader=reader.part,
        topic=reader.topic,
        partition=partition,
        from_offset=from_offset,
        to_offset=to_offset,
    )


def skipped(record: RecordsExpired) -> RecordsSkipped:
    return RecordsSkipped(**record.model_dump(exclude={"type"}))


@pytest.mark.parametrize(
    ("positions", "firsts", "found"),
    [
        ({0: 7, 1: 9}, {0: 7, 1: 0}, []),
        ({0: 7, 1: 9}, {0: 8, 1: 12}, [Gap(0, 7, 8), Gap(1, 9, 12)]),
        ({0: 7}, {0: 7, 1: 50}, []),  # a partition that is new to the reader: nothing of it is lost to it
        ({}, {0: 50}, []),
    ],
)
def test_gap_is_what_lies_between_a_position_and_the_first_offset(
    positions: dict[int, int], firsts: dict[int, int], found: list[Gap]
) -> None:
    assert gaps(positions, firsts) == found


@pytest.mark.parametrize(
    ("given_up", "found"),
    [
        ([Gap(0, 100, 300)], []),
        ([Gap(0, 200, 300), Gap(0, 100, 200)], []),  # twice in a row, told in any order
        ([Gap(0, 100, 200)], [Gap(0, 200, 300)]),  # retention has gone on since
        ([Gap(0, 101, 300)], [Gap(0, 100, 300)]),
        ([Gap(1, 100, 300)], [Gap(0, 100, 300)]),
    ],
)
def test_only_what_was_given_up_is_passed_over(given_up: list[Gap], found: list[Gap]) -> None:
    assert gaps({0: 100}, {0: 300}, given_up) == found


def test_reader_waits_until_its_own_gap_is_given_up() -> None:
    stream = Reader("digits", "stream", "digits.events")
    lost = [expired(0, 10), expired(0, 10, partition=1), expired(0, 10, stream)]
    assert waiting([*lost, skipped(lost[0])], "digits") == lost[1:]
    assert waiting([*lost, *map(skipped, lost)], "digits") == []
    assert waiting(lost, "fraud") == []


def test_cut_is_what_lies_between_an_end_and_a_position_past_it() -> None:
    assert cuts({0: 7, 1: 9, 2: 5}, {0: 7, 1: 6, 3: 0}) == [Gap(1, 6, 9), Gap(2, 0, 5)]
    assert left(Gap(1, 6, 9), [Gap(1, 5, 8), Gap(0, 5, 9)])
    assert not left(Gap(1, 6, 9), [Gap(1, 5, 7), Gap(1, 7, 9)])


def test_a_reader_may_have_lost_records_in_both_ways() -> None:
    lost = [expired(0, 10), TopicTruncated(**expired(70, 90).model_dump(exclude={"type"}))]
    assert waiting(lost, "digits") == lost
    assert waiting([*lost, skipped(lost[0])], "digits") == lost[1:]


def test_newest_word_of_a_partition_counts() -> None:
    told = [expired(0, 10), expired(0, 25)]
    assert [gap_of(record) for record in waiting(told, "digits")] == [Gap(0, 0, 25)]


def test_what_was_told_long_ago_is_known_until_it_is_told_again() -> None:
    def cut(at: datetime, to_offset: int = 90) -> TopicTruncated:
        return TopicTruncated(**expired(70, to_offset).model_dump(exclude={"type", "at"}), at=at)

    day, before = timedelta(days=1), datetime(2026, 1, 9, tzinfo=UTC)
    old, recent = cut(before - day), cut(before, to_offset=80)
    records = [old, expired(0, 10), recent]
    assert last_told_before(records, ARCHIVE, TopicTruncated, before) == [Gap(0, 70, 90)]
    assert last_told_before([*records, cut(before + day)], ARCHIVE, TopicTruncated, before) == []
    assert last_told_before([cut(before + day), *records], ARCHIVE, TopicTruncated, before) == []
