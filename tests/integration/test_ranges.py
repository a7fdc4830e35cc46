"""Records by their offsets, as the stream's driver reads a micro-batch."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka import Producer

from deeplambda.adapters import kafka_ranges
from deeplambda.adapters.kafka import Publisher, end_offsets, librdkafka_options, received
from deeplambda.adapters.kafka_ranges import CHUNK_ROWS, RangeReader
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from tests.traffic import new_topic

RECORDS = 1_200


@pytest.fixture(scope="module")
def topic(stack: Settings) -> str:
    """A topic of one partition, which holds the numbers up to RECORDS."""
    name = new_topic(stack, 1)
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


def test_each_partition_is_read_in_order_however_their_ranges_end(stack: Settings) -> None:
    name = new_topic(stack, 3)
    with Publisher(stack) as publisher:
        for n in range(3 * RECORDS):
            publisher.send(name, str(n % 40), n)
    ends = end_offsets(stack, name)
    found: dict[int, list[int]] = {partition: [] for partition in ends}
    with closing(RangeReader(stack, name)) as reader:
        firsts = dict.fromkeys(ends, 0)
        for percent in (1, 2, 60, 61, 61, 100):  # of one partition, and of the others half as much until the last
            shares = {p: percent if percent == 100 or p == 1 else percent // 2 for p in ends}
            stops = {p: max(firsts[p], end * shares[p] // 100) for p, end in ends.items()}
            for chunk in reader.chunks({p: (firsts[p], stops[p]) for p in ends if firsts[p] < stops[p]}):
                for row in chunk:
                    found[row["partition"]].append(row["offset"])
            firsts = stops
    assert found == {partition: list(range(end)) for partition, end in ends.items()}


def test_a_partition_of_which_much_is_ahead_may_be_read_from_elsewhere(stack: Settings) -> None:
    name = new_topic(stack, 2)
    with Publisher(stack) as publisher:
        for n in range(8 * RECORDS):
            publisher.send(name, str(n), n)
    ends = end_offsets(stack, name)
    with closing(RangeReader(stack, name)) as reader:
        for _ in reader.chunks({0: (0, 1), 1: (0, ends[1])}):  # meanwhile all of the other one comes
            pass
        offsets = [row["offset"] for chunk in reader.chunks({0: (100, 200)}) for row in chunk]
    assert offsets == list(range(100, 200))


def test_what_is_read_ahead_of_a_range_is_bounded_by_bytes_too(stack: Settings) -> None:
    name, value = new_topic(stack, 2), bytes(500_000)
    producer = Producer(librdkafka_options(stack))
    for n in range(120):
        producer.produce(name, value, partition=n % 2)
    producer.flush()
    with closing(RangeReader(stack, name)) as reader:
        for _ in reader.chunks({0: (0, 1), 1: (0, 60)}):
            pass
        held = sum(len(record.value or b"") for record in reader._ahead[0])
    assert held < 10 * 1024 * 1024, "of 30 MB"


def test_what_is_read_ahead_of_many_partitions_is_bounded_together(stack: Settings) -> None:
    partitions, value = 40, bytes(250_000)
    name = new_topic(stack, partitions)
    producer = Producer(librdkafka_options(stack))
    for partition in range(partitions):
        for _ in range(120 if partition == 0 else 6):
            producer.produce(name, value, partition=partition)
    producer.flush()
    with closing(RangeReader(stack, name)) as reader:
        for _ in reader.chunks({partition: (0, 120 if partition == 0 else 1) for partition in range(partitions)}):
            pass
        held = [len(record.value or b"") for ahead in reader._ahead.values() for record in ahead]
        assert sum(held) < 25 * 1024 * 1024, "of 48 MB"
        rest = dict.fromkeys(range(1, partitions), (1, 6))
        found = [(row["partition"], row["offset"]) for chunk in reader.chunks(rest) for row in chunk]
        assert sum(len(ahead) for ahead in reader._ahead.values()) == reader._ahead_bytes == 0
    assert sorted(found) == [(partition, offset) for partition in rest for offset in range(1, 6)]


def test_marks_of_transactions_hold_no_range_up(stack: Settings) -> None:
    name = new_topic(stack, 1)
    producer = Producer(librdkafka_options(stack) | {"transactional.id": name})
    producer.init_transactions()
    for ends_well in (True, False):
        producer.begin_transaction()
        producer.produce(name, b"1")
        producer.flush()
        producer.commit_transaction() if ends_well else producer.abort_transaction()
    with closing(RangeReader(stack, name)) as reader:
        offsets = [row["offset"] for chunk in reader.chunks({0: (0, 4)}) for row in chunk]
    assert offsets == [0, 2]


def test_records_that_are_not_there_are_not_passed_over(reader: RangeReader) -> None:
    with pytest.raises(NotReady):
        numbers(reader, RECORDS + 5, RECORDS + 10)


def test_of_many_partitions_with_a_backlog_little_is_read_twice(
    stack: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    partitions, records, each = 64, 240, 30
    name = new_topic(stack, partitions)
    producer = Producer(librdkafka_options(stack))
    for partition in range(partitions):
        for _ in range(records):
            producer.produce(name, bytes(1_000), partition=partition)
    producer.flush()
    fetched = []

    def counted(*arguments: Any) -> Any:
        fetched.extend(found := received(*arguments))
        return found

    monkeypatch.setattr(kafka_ranges, "received", counted)
    found = 0
    with closing(RangeReader(stack, name)) as reader:
        for first in range(0, records, each):
            for chunk in reader.chunks(dict.fromkeys(range(partitions), (first, first + each))):
                found += len(chunk)
    assert found == partitions * records
    assert len(fetched) < 2 * found
