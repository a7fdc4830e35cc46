"""A large micro-batch, as Spark's workers score it."""

from typing import NamedTuple
from uuid import uuid4

import numpy as np
import pytest
from pydantic_core import to_json
from pyspark.sql import SparkSession

from deeplambda.adapters.kafka import Publisher, create_topics, end_offsets, spark_options
from deeplambda.records import topics
from deeplambda.service.stream_session import slots
from speed_layer.stream.workers import Workers
from tests.integration.own_model_service import OwnService
from tests.traffic import digit_event, new_topic

EVENTS, PARTITIONS = 200, 40


class Scored(NamedTuple):
    hops_ms: dict[str, float]
    tasks: int
    predictions: int


@pytest.fixture(scope="module")
def scored(spark: SparkSession, running_service: OwnService) -> Scored:
    """Events in many partitions, scored as one micro-batch."""
    settings, group = running_service.settings, uuid4().hex
    running_service.promote(1)
    assert running_service.serves(1), running_service.log.read_text()
    create_topics(settings)
    predictions, events = topics.predictions(running_service.name), new_topic(settings, PARTITIONS)
    with Publisher(settings) as publisher:
        for n in range(EVENTS):
            publisher.send_record(events, str(n).encode(), to_json(digit_event(str(n), np.zeros(784, np.uint8))))
    before = sum(end_offsets(settings, predictions).values())
    batch = spark.read.format("kafka").options(**spark_options(settings)).option("subscribe", events).load()
    spark.sparkContext.setJobGroup(group, "a large micro-batch")
    hops_ms = Workers(spark, settings, running_service.name).score(batch)
    tracker = spark.sparkContext.statusTracker()
    stages = [tracker.getStageInfo(stage) for job in tracker.getJobIdsForGroup(group) for stage in _stages(spark, job)]
    tasks = sum(stage.numTasks for stage in stages if stage is not None)
    return Scored(hops_ms, tasks, sum(end_offsets(settings, predictions).values()) - before)


def _stages(spark: SparkSession, job: int) -> list[int]:
    found = spark.sparkContext.statusTracker().getJobInfo(job)
    return list(found.stageIds) if found else []


def test_every_event_has_its_prediction(scored: Scored) -> None:
    assert scored.predictions == EVENTS


def test_partitions_that_are_many_share_tasks(spark: SparkSession, scored: Scored) -> None:
    assert 0 < scored.tasks <= slots(spark)


def test_workers_tell_where_their_time_went(scored: Scored) -> None:
    assert set(scored.hops_ms) == {"read", "transform", "model"}
    assert all(took_ms > 0 for took_ms in scored.hops_ms.values()), scored.hops_ms
