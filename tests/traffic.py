"""What the tests send and count: events by kafka-python as a stranger would, rows by SQL."""

import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import cycle, islice
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
from kafka import KafkaAdminClient, KafkaProducer
from numpy.typing import NDArray
from pydantic_core import from_json, to_json
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import client_options, consumer, end_offsets
from deeplambda.config import Settings

T = TypeVar("T")
EVENTS = 5_000
"""That flow while something is broken."""


def eventually(probe: Callable[[], T], timeout_s: float = 60, every_s: float = 0.2) -> T:
    """The first true value of `probe`; its last value when time is up."""
    retrying = Retrying(
        retry=retry_if_result(lambda value: not value),
        stop=stop_after_delay(timeout_s),
        wait=wait_fixed(every_s),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    result: T = retrying(probe)
    return result


def new_topic(settings: Settings, partitions: int, name: str | None = None) -> str:
    """The name of a topic that nobody else uses. name: unless it has one already."""
    name = name or f"test-{uuid4().hex[:8]}"
    with KafkaAdminClient(**client_options(settings)) as admin:
        admin.create_topics({name: {"num_partitions": partitions, "replication_factor": 1}})
    return name


def new_run(name: str) -> str:
    """A run's name that no other run has, so that no event of an earlier one, or of another test, passes for its."""
    return f"{name}-{uuid4().hex[:8]}"


def digit_event(event_id: str, image: NDArray[np.uint8]) -> dict[str, Any]:
    """A good event."""
    return {
        "event_id": event_id,
        "occurred_at": datetime.now(UTC).isoformat(),
        "image": b64encode(image.tobytes()).decode(),
    }


def producer(settings: Settings) -> KafkaProducer:
    """kafka-python's producer, as the README's example makes it, for records up to 3 MB."""
    return KafkaProducer(**client_options(settings), acks="all", max_request_size=3_000_000)


def send_digits(settings: Settings, run: str, images_NHW: Iterable[NDArray[np.uint8]], rate: float = 500) -> list[str]:
    """Send one event for each image; returns the ids that the broker acknowledged: the ledger."""
    sender, acknowledged, started = producer(settings), [], time.monotonic()
    for n, image in enumerate(images_NHW):
        event_id = f"{run}-{n:05}"
        pending = sender.send("digits.events", key=event_id.encode(), value=to_json(digit_event(event_id, image)))
        pending.add_callback(lambda _, event_id=event_id: acknowledged.append(event_id))
        time.sleep(max(0.0, started + (n + 1) / rate - time.monotonic()))  # the pace of the load
    sender.flush(timeout=120)
    sender.close()
    return acknowledged


def realtime_ids(settings: Settings, run: str) -> list[str]:
    """Event ids of the run in MySQL's real-time view."""
    statement = text(
        "SELECT event_id FROM realtime_predictions WHERE application = 'digits' AND event_id LIKE :run ORDER BY 1"
    )
    with mysql.engine(settings, "analyst").connect() as connection:
        return list(connection.scalars(statement, {"run": f"{run}-%"}))


def dead_letters(settings: Settings, since: dict[int, int] | None = None) -> list[dict[str, Any]]:
    """The dead letters of digits past the offsets `since`."""
    ends = end_offsets(settings, "digits.dead-letters")
    reader, letters = consumer(settings, "digits.dead-letters"), []
    for partition in reader.assignment():
        reader.seek(partition, (since or {}).get(partition.partition, 0))
    while any(reader.position(partition) < ends[partition.partition] for partition in reader.assignment()):
        for records in reader.poll(timeout_ms=500).values():
            letters += [from_json(record.value) for record in records]
    reader.close()
    return letters


def assert_survived(
    settings: Settings,
    run: str,
    images_NHW: NDArray[np.uint8],
    disturb: Callable[[], object],
    *,
    rate: float = 500,
    timeout_s: float = 120,
) -> None:
    """Break something while `EVENTS` events flow: each of them is in MySQL in the end, once, with a prediction."""
    ledger: list[str] = []
    images = islice(cycle(images_NHW), EVENTS)
    sending = threading.Thread(target=lambda: ledger.extend(send_digits(settings, run, images, rate)))
    sending.start()
    try:
        assert eventually(lambda: len(seen_ids(settings, run)) > 100), "the stream did not score the first events"
        disturb()
    finally:
        sending.join()
    assert len(ledger) == EVENTS, "the broker came back, so every event was acknowledged in the end"
    assert eventually(lambda: set(seen_ids(settings, run)) >= set(ledger), timeout_s, every_s=1), (
        f"{len(set(ledger) - set(seen_ids(settings, run)))} acknowledged events lost"
    )
    assert sorted(seen_ids(settings, run)) == sorted(ledger)
    with mysql.engine(settings, "analyst").connect() as connection:
        without = "SELECT count(*) FROM realtime_predictions WHERE event_id LIKE :run AND prediction = ''"
        assert connection.scalar(text(without), {"run": f"{run}-%"}) == 0


def seen_ids(settings: Settings, run: str) -> list[str]:
    """`realtime_ids`; nothing while MySQL itself is away."""
    try:
        return realtime_ids(settings, run)
    except OperationalError:
        return []
