"""Retention overtakes readers that were stopped: each says what it lost, and goes on when that is given up."""

from collections import Counter
from collections.abc import Callable
from subprocess import CompletedProcess

import numpy as np
import pytest
from kafka import KafkaAdminClient, TopicPartition
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from deeplambda.adapters.kafka import client_options, end_offsets
from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.records.lifecycle import RecordsSkipped
from deeplambda.service.expiry import told
from deeplambda.service.heartbeat import last_states
from tests.traffic import eventually, new_run, realtime_ids, send_digits

Command = Callable[..., "CompletedProcess[str]"]
SENT = 100


@pytest.mark.long
def test_overtaken_readers_wait_until_the_gap_is_given_up_and_miss_nothing_past_it(
    stack: Settings, champion: int, test_images: NDArray[np.uint8], hive_engine: Engine, deeplambda: Command
) -> None:
    def send(name: str) -> tuple[str, list[str]]:
        run = new_run(f"retention-{name}")
        return run, sorted(send_digits(stack, run, test_images[:SENT]))

    def archived(run: str) -> list[str]:
        with hive_engine.connect() as connection:
            found = text(f"SELECT event_id FROM lake.digits.events WHERE event_id LIKE '{run}-%'")
            return sorted(connection.scalars(found))

    def is_everywhere(run: str, ledger: list[str]) -> bool:
        return realtime_ids(stack, run) == ledger and archived(run) == ledger

    def states() -> dict[str, str]:
        loops = {"archive": "digits", "stream": "digits", "views": "realtime"}
        return {part: last_states(stack, part).get(loop, "") for part, loop in loops.items()}

    before = send("before")
    assert eventually(lambda: is_everywhere(*before), every_s=1)

    deeplambda("down", "views")
    scored_before = sum(end_offsets(stack, topics.predictions("digits")).values())
    unseen = send("unseen")
    assert eventually(lambda: sum(end_offsets(stack, topics.predictions("digits")).values()) >= scored_before + SENT)
    deeplambda("down", "stream", "archive")
    lost = send("lost")
    for topic in (topics.events("digits"), topics.predictions("digits")):
        expire(stack, topic)
    deeplambda("up", "stream", "archive", "views")
    assert eventually(lambda: all("skip-expired digits" in state for state in states().values()), every_s=1), states()
    after = send("after")
    assert realtime_ids(stack, after[0]) == archived(after[0]) == [], "they wait"

    given_up = deeplambda("speed", "skip-expired", "digits").stdout
    assert Counter(line.partition(":")[0] for line in given_up.splitlines()) >= Counter(
        dict.fromkeys(("archive", "stream", "views"), stack.kafka_partitions)
    )
    assert eventually(lambda: is_everywhere(*after), timeout_s=120, every_s=1)
    assert eventually(lambda: set(states().values()) == {"running"}, every_s=1), states()
    assert archived(lost[0]) == realtime_ids(stack, lost[0]) == realtime_ids(stack, unseen[0]) == []
    assert is_everywhere(*before), "nothing came twice"
    skipped = [record for record in told(stack) if isinstance(record, RecordsSkipped)]
    by_archive = [each for each in skipped if (each.reader, each.topic) == ("archive", "digits.events")]
    assert sum(each.to_offset - each.from_offset for each in by_archive) >= SENT
    again = deeplambda("speed", "skip-expired", "digits", check=False)
    assert again.returncode == 1
    assert "no reader of digits waits" in again.stderr


def expire(settings: Settings, topic: str) -> None:
    """Delete every record of `topic`, as its retention would."""
    with KafkaAdminClient(**client_options(settings)) as admin:
        admin.delete_records({TopicPartition(topic, p): end for p, end in end_offsets(settings, topic).items()})
