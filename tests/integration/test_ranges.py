"""Records by their offsets, as the stream's driver reads a micro-batch."""

import uuid
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient

from deeplambda.adapters.kafka import Publisher, client_options
from deeplambda.adapters.kafka_ranges import CHUNK_ROWS, RangeReader
from deeplambda.config import Settings
from deeplambda.errors import NotReady

RECORDS = 1_200


@pytest.fixture(scope="module")
def topic(stack: Settings) -> str:
    """A topic of one partition, which holds the numbers up to RECORDS."""
    name = f"ranges-{uuid.uuid4().hex[:8]}"
    with KafkaAdminClient(**client_options(stack)) as admin:
        admin.create_topics({name: {"num_partitions": 1, "replication_factor": 1}})
    with Publisher(stack) as publisher:
        for n in range(RECORDS):
            publisher.send(name, str(n), n)
    return name


@pytest.fixture
def reader(stack: Settings, topic: str) -> Iterator[RangeReader]:
    made = RangeReader(stack, topic)
    yield made
    made.close()


def numbers(reader: RangeReader, first: int, end: int) -> list[int]:
    return [int(row["value"]) for chunk in reader.chunks({0: (first, end)}) for row in chunk]


def test_a_range_is_read_from_its_first_record_to_its_last(reader: RangeReader) -> None:
    assert numbers(reader, 7, 1_100) == list(range(7, 1_100))


def test_ranges_that_follow_one_another_miss_and_repeat_nothing(reader: RangeReader) -> None:
    ends = [3, 4, 600, 601, RECORDS]
    found = [n for first, end in zip([0, *ends], ends, strict=False) for n in numbers(reader, first, end)]
    assert found == list(range(RECORDS))


def test_a_range_may_be_read_again(reader: RangeReader) -> None:
    assert numbers(reader, 100, 200) == numbers(reader, 100, 200) == list(range(100, 200))


def test_a_range_that_was_broken_off_is_read_anew(reader: RangeReader) -> None:
    next(reader.chunks({0: (0, RECORDS)}))
    assert numbers(reader, 0, RECORDS) == list(range(RECORDS))


def test_a_chunk_is_bounded(reader: RangeReader) -> None:
    assert max(len(chunk) for chunk in reader.chunks({0: (0, RECORDS)})) <= CHUNK_ROWS


def test_what_is_here_already_and_what_still_comes_are_one_chunk(reader: RangeReader) -> None:
    numbers(reader, 0, 100)
    assert [len(chunk) for chunk in reader.chunks({0: (100, 100 + CHUNK_ROWS)})] == [CHUNK_ROWS]


def test_records_that_are_not_there_are_not_passed_over(reader: RangeReader) -> None:
    with pytest.raises(NotReady):
        numbers(reader, RECORDS + 5, RECORDS + 10)
