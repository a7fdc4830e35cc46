"""Refused events are sent again once what refused them is mended, and each of them once."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition
from typer.testing import CliRunner

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher, client_options, consumer, create_topics, end_offsets
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.records import dead_letters, topics
from deeplambda.records.dead_letters import DeadLetter
from examples import demo
from speed_layer.commands import speed
from speed_layer.dead_letter_replay import Filter, letters, replay
from tests.integration.own_model_service import OwnService

LONG = b'{"note": "' + b"x" * 300 + b'"}'


@pytest.fixture
def refused(stack: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnService:
    """An application of the test's own with five refused events: one without a key, one whose letter was cut."""
    service = OwnService(stack, tmp_path)
    create_topics(service.settings)
    monkeypatch.setattr(dead_letters, "KEPT_VALUE_BYTES", 100)
    records = [(f"event-{n}".encode(), b"{not JSON") for n in range(3)] + [(None, b"{}"), (b"long", LONG)]
    with Publisher(service.settings) as publisher:
        for key, value in records:
            publisher.send_record(topics.events(service.name), key, value)
        publisher.flush()
    refuse(service, received(service))
    return service


def refuse(service: OwnService, records: list[tuple[int, int, bytes | None, bytes]]) -> None:
    """Write a dead letter about each record, as `received` gives it."""
    with Publisher(service.settings) as publisher:
        for partition, offset, key, value in records:
            letter = DeadLetter.of_record(
                application=service.name,
                reason="missing_key" if key is None else "bad_value",
                detail="as [/it] is",
                topic=topics.events(service.name),
                partition=partition,
                offset=offset,
                received_at=now(),
                key=key,
                value=value,
                model_version=2 if key is None else 1,
            )
            publisher.send(topics.dead_letters(service.name), letter.record_key, letter)


def received(service: OwnService) -> list[tuple[int, int, bytes | None, bytes]]:
    """Partition, offset, key and value of every event of the application."""
    topic, found = topics.events(service.name), []
    ends, reader = end_offsets(service.settings, topic), consumer(service.settings, topic)
    while any(reader.position(partition) < ends[partition.partition] for partition in reader.assignment()):
        for records in reader.poll(timeout_ms=500).values():
            found += [(record.partition, record.offset, record.key, record.value) for record in records]
    reader.close()
    return found


def test_what_was_refused_is_sent_again_whole_and_once(refused: OwnService) -> None:
    engine = mysql.engine(refused.settings, "platform")

    def send(chosen: Filter, *, dry_run: bool = False, again: bool = False) -> tuple[dict[str, int], dict[str, int]]:
        done = replay(refused.settings, engine, refused.name, chosen, who="ada", dry_run=dry_run, again=again)
        return dict(done.sent), {why.partition(":")[0]: letters for why, letters in done.left_out.items()}

    in_vain = "missing_key, which sending again does not mend"
    assert send(Filter(), dry_run=True) == ({"bad_value": 4}, {in_vain: 1})
    assert len(received(refused)) == 5, "a dry run sends nothing"
    assert send(Filter(version=2, reason="bad_value")) == ({}, {})
    assert send(Filter(since=now())) == ({}, {})
    assert send(Filter(version=2)) == ({}, {in_vain: 1})
    assert send(Filter(version=2, reason="missing_key")) == ({"missing_key": 1}, {})
    assert send(Filter(since=datetime(1, 1, 1, tzinfo=UTC))) == ({"bad_value": 4}, {"sent again before": 1})
    assert send(Filter()) == ({}, {"sent again before": 5})

    found = Counter((key, value) for _, _, key, value in received(refused))
    assert set(found.values()) == {2}, "each as it was, byte for byte"
    assert found[b"long", LONG] == 2

    refuse(refused, [each for each in received(refused) if each[2] == b"long"][-1:])
    assert send(Filter(), again=True, dry_run=True) == ({"bad_value": 1}, {"sent again before": 5})
    assert send(Filter()) == ({}, {"sent again before": 5, "refused again": 1})
    assert send(Filter(), again=True) == ({"bad_value": 1}, {"sent again before": 5})
    assert send(Filter(), again=True) == ({}, {"sent again before": 6})


def test_a_cut_letter_whose_topic_was_made_anew_is_left_out(refused: OwnService) -> None:
    (other,) = letters(refused.settings, refused.name, Filter(reason="missing_key"))
    moved = [(other.partition, offset, b"long", LONG) for offset in (other.offset, other.offset + 1_000)]
    refuse(refused, moved)  # another record is there now; and none yet
    done = replay(
        refused.settings,
        mysql.engine(refused.settings, "platform"),
        refused.name,
        Filter(reason="bad_value"),
        who="ada",
        dry_run=True,
    )
    assert done.left_out["its bytes are gone"] == 2


def test_letters_that_come_while_they_are_read_are_not_read(refused: OwnService) -> None:
    found = letters(refused.settings, refused.name, Filter())
    first = next(found)
    refuse(refused, [(first.partition, first.offset, b"later", b"{}")] * 3)
    assert len([first, *found]) == 5


def test_dead_letters_are_listed_by_the_form_of_before_and_shown_whole(refused: OwnService) -> None:
    runner = CliRunner()
    listed = runner.invoke(speed, ["dead-letters", refused.name, "-n", "2"])
    assert listed.exit_code == 0, listed.output
    assert "dead letters of" in listed.output
    assert "[/it]" in "".join(listed.output.split())
    (letter,) = letters(refused.settings, refused.name, Filter(reason="missing_key"))
    shown = runner.invoke(speed, ["dead-letters", "show", refused.name, letter.record_key])
    assert '"model_version": 2' in shown.output
    assert '"value": "{}"' in shown.output
    planned = runner.invoke(speed, ["dead-letters", "replay", refused.name, "--reason", "missing_key"])
    assert "would be sent again: 1 events" in planned.output


def test_the_demo_counts_its_dead_letters_though_older_ones_have_expired(
    refused: OwnService, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = topics.dead_letters(refused.name)
    monkeypatch.setattr(demo, "APPLICATION", refused.name)
    of_before = end_offsets(refused.settings, topic)
    assert sum(of_before.values()) == 5
    with Publisher(refused.settings) as publisher:
        for n in range(4):
            publisher.send(topic, f"late-{n}", {"event_id": f"late-{n}"})
    expired = {TopicPartition(topic, partition): end for partition, end in of_before.items()}
    with KafkaAdminClient(**client_options(refused.settings)) as admin:
        admin.delete_records(expired)
    assert demo.dead_letters(refused.settings, "late") == 4
