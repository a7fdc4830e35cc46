"""A Spark stream's own checkpoint says where it goes on; a damaged one is named, never passed over."""

import json
import shutil
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession

from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher, create_topics, end_offsets
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, Truncated
from deeplambda.records import topics
from deeplambda.records.expiry import Gap, Reader, gap_of
from deeplambda.records.lifecycle import TopicTruncated
from deeplambda.service.checkpoints import last_finished, starting_offsets
from deeplambda.service.expiry import expired, skip, told
from deeplambda.service.stream_session import event_stream
from tests.traffic import eventually, new_run


@pytest.fixture
def application(stack: Settings) -> str:
    """An application of which there are topics, with ten events."""
    name = new_run("checkpoints")
    create_topics(stack.model_copy(update={"applications": (name,)}))
    send(stack, name)
    return name


def send(settings: Settings, application: str) -> None:
    with Publisher(settings) as publisher:
        for n in range(10):
            publisher.send(topics.events(application), str(n), n)


def read_all(
    spark: SparkSession, settings: Settings, application: str, checkpoint: Path, starts: str = "earliest"
) -> None:
    """Finish a batch of all that Kafka has, as a stream does that is then stopped."""
    query = (
        event_stream(spark, settings, topics.events(application), starts)
        .writeStream.format("noop")
        .option("checkpointLocation", f"file:{checkpoint}")
        .trigger(availableNow=True)
        .start()
    )
    query.awaitTermination()


def test_stream_goes_on_after_what_its_checkpoint_or_its_sink_has(
    spark: SparkSession, stack: Settings, application: str, tmp_path: Path
) -> None:
    reader, checkpoint = Reader(application, "archive", topics.events(application)), f"file:{tmp_path}/checkpoint"
    assert json.loads(starting_offsets(spark, stack, reader, checkpoint)) == {reader.topic: as_json({0: 0, 1: 0})}
    read_all(spark, stack, application, tmp_path / "checkpoint")
    finished = end_offsets(stack, reader.topic)
    last = last_finished(spark, checkpoint, reader.topic)
    assert last is not None
    assert (last.batch, last.offsets) == (0, finished)
    send(stack, application)
    starts = json.loads(starting_offsets(spark, stack, reader, checkpoint, stored=lambda last: {0: 0}))
    assert starts == {reader.topic: as_json(finished)}
    assert last_finished(spark, checkpoint, reader.topic) == last, "it is Spark's to go on with"
    further = finished | {1: finished[1] + 1}
    starts = json.loads(starting_offsets(spark, stack, reader, checkpoint, stored=lambda last: further))
    assert starts == {reader.topic: as_json(further)}
    assert last_finished(spark, checkpoint, reader.topic) is None, "it would have gone on before what is stored"


def as_json(offsets: dict[int, int]) -> dict[str, int]:
    return {str(partition): offset for partition, offset in offsets.items()}


def test_topic_that_ends_before_its_stream_is_named_and_not_read(
    spark: SparkSession, stack: Settings, application: str, tmp_path: Path
) -> None:
    read_all(spark, stack, application, tmp_path)
    offsets, ends = tmp_path / "offsets" / "0", end_offsets(stack, topics.events(application))
    further = json.dumps({topics.events(application): as_json(ends | {1: ends[1] + 1})})
    overwrite(offsets, "\n".join([*offsets.read_text().splitlines()[:2], further]))
    with pytest.raises(StreamingQueryException, match=f"ends at offset {ends[1]}, and was read up to {ends[1] + 1}"):
        read_all(spark, stack, application, tmp_path)
    assert [each.name for each in (tmp_path / "offsets").glob("[0-9]*")] == ["0"], "no batch was planned"
    reader = Reader(application, "archive", topics.events(application))

    def starts() -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = json.loads(starting_offsets(spark, stack, reader, f"file:{tmp_path}"))
        return found

    lost = f"offsets {ends[1]} to {ends[1]} of partition 1 are of other records"
    with pytest.raises(Truncated, match=lost):
        starts()
    while end_offsets(stack, reader.topic)[1] <= ends[1]:
        send(stack, application)
    with pytest.raises(Truncated, match=lost):  # though the topic has grown past it
        starts()
    with patch("deeplambda.service.expiry.now", return_value=now() + timedelta(days=8)), pytest.raises(Truncated):
        starts()
    assert eventually(lambda: len([each for each in told(stack) if each.application == application]) == 2)
    waiting = expired(stack, application)
    assert [(type(each), gap_of(each)) for each in waiting] == [(TopicTruncated, Gap(1, ends[1], ends[1] + 1))]
    skip(stack, mysql.engine(stack, "platform"), waiting)
    assert eventually(lambda: expired(stack, application) == [])
    assert starts() == {reader.topic: as_json(ends | {1: ends[1] + 1})}


def test_topic_that_lacks_a_partition_of_its_stream_is_named_and_not_read(
    spark: SparkSession, stack: Settings, application: str, tmp_path: Path
) -> None:
    read_all(spark, stack, application, tmp_path)
    offsets = tmp_path / "offsets" / "0"
    more = json.dumps({topics.events(application): as_json(end_offsets(stack, topics.events(application)) | {7: 5})})
    overwrite(offsets, "\n".join([*offsets.read_text().splitlines()[:2], more]))
    with pytest.raises(StreamingQueryException, match="-7 is gone, and was read up to 5"):
        read_all(spark, stack, application, tmp_path)
    assert [each.name for each in (tmp_path / "offsets").glob("[0-9]*")] == ["0"], "no batch was planned"


def test_topic_that_ends_before_a_planned_batch_is_named_and_the_batch_given_up(
    spark: SparkSession, stack: Settings, application: str, tmp_path: Path
) -> None:
    reader = Reader(application, "stream", topics.events(application))
    read_all(spark, stack, application, tmp_path)
    ends, finished = end_offsets(stack, reader.topic), (tmp_path / "offsets" / "0").read_text().splitlines()
    planned = json.dumps({reader.topic: as_json(ends | {1: ends[1] + 1_000})})
    (tmp_path / "offsets" / "1").write_text("\n".join([*finished[:2], planned]))
    with pytest.raises(Truncated, match=f"offsets {ends[1]} to {ends[1] + 999} of partition 1 are of other records"):
        starting_offsets(spark, stack, reader, f"file:{tmp_path}")
    send(stack, application)
    skip(stack, mysql.engine(stack, "platform"), expired(stack, application))
    assert eventually(lambda: expired(stack, application) == [])
    for _ in range(2):  # as one that is stopped before its first batch has ended
        starts = starting_offsets(spark, stack, reader, f"file:{tmp_path}")
        assert json.loads(starts) == {reader.topic: as_json(ends)}
    read_all(spark, stack, application, tmp_path, starts)
    last = last_finished(spark, f"file:{tmp_path}", reader.topic)
    assert last is not None
    assert (last.batch, last.offsets) == (0, end_offsets(stack, reader.topic))


def test_stream_whose_checkpoint_was_being_removed_goes_on_where_it_would_have(
    spark: SparkSession, stack: Settings, application: str, tmp_path: Path
) -> None:
    reader, checkpoint = Reader(application, "archive", topics.events(application)), f"file:{tmp_path}/checkpoint"
    read_all(spark, stack, application, tmp_path / "checkpoint")
    send(stack, application)
    further = {partition: end + 1 for partition, end in end_offsets(stack, reader.topic).items()}
    send(stack, application)
    before = tmp_path / "before"
    shutil.copytree(tmp_path / "checkpoint", before)
    starts = starting_offsets(spark, stack, reader, checkpoint, stored=lambda last: further)
    assert json.loads(starts) == {reader.topic: as_json(further)}
    for part in ("commits", "offsets"):
        shutil.copytree(before / part, tmp_path / "checkpoint" / part)
    assert starting_offsets(spark, stack, reader, checkpoint) == starts
    read_all(spark, stack, application, tmp_path / "checkpoint", starts)
    ends = as_json(end_offsets(stack, reader.topic))
    assert json.loads(starting_offsets(spark, stack, reader, checkpoint)) == {reader.topic: ends}
    assert not (tmp_path / "checkpoint" / "starts").exists(), "a batch has ended since"


@pytest.mark.parametrize(
    "lost", [("offsets/1",), ("commits/1",), ("offsets/1", "commits/1"), ("offsets/2", "commits/1")]
)
def test_stream_steps_back_over_batches_that_a_crash_of_the_machine_left_empty(
    spark: SparkSession, stack: Settings, application: str, tmp_path: Path, lost: tuple[str, ...]
) -> None:
    reader, checkpoint = Reader(application, "stream", topics.events(application)), f"file:{tmp_path}"
    read_all(spark, stack, application, tmp_path)
    first = last_finished(spark, checkpoint, reader.topic)
    assert first is not None
    send(stack, application)
    read_all(spark, stack, application, tmp_path)
    for file in lost:
        overwrite(tmp_path / file, "")
    assert json.loads(starting_offsets(spark, stack, reader, checkpoint)) == {
        reader.topic: as_json(dict(first.offsets))
    }
    read_all(spark, stack, application, tmp_path)
    last = last_finished(spark, checkpoint, reader.topic)
    assert last is not None
    assert (last.query, last.batch, last.offsets) == (first.query, 1, end_offsets(stack, reader.topic))


def overwrite(file: Path, text: str) -> None:
    """Write a file of a checkpoint, whose checksum then says nothing of it."""
    file.write_text(text)
    file.with_name(f".{file.name}.crc").unlink(missing_ok=True)


def test_damaged_checkpoint_is_named(spark: SparkSession, stack: Settings, application: str, tmp_path: Path) -> None:
    read_all(spark, stack, application, tmp_path)
    for file in (tmp_path / "offsets").iterdir():
        file.unlink()
    with pytest.raises(ConfigurationError, match=f"checkpoint file:{tmp_path} is damaged"):
        last_finished(spark, f"file:{tmp_path}", topics.events(application))
