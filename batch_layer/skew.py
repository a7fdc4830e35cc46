"""Skew: what the stream said of a share of a day's events, beside what batch says of the same archived bytes.

1. Some runs of records are read from `<application>.predictions`, evenly spread over the last day.
2. Their events, found in the archive by position, are scored as a recomputation scores them, by the version that the
   stream names.
3. What differs is counted by version and field, and kept in `skew`.
"""

import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from kafka import TopicPartition
from pydantic import ValidationError
from pydantic_core import from_json
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sqlalchemy import delete, insert

from batch_layer.recompute import _scored
from deeplambda.adapters import kafka, mysql
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.objective import Classification, MultiLabel, Objective
from deeplambda.records import topics
from deeplambda.records.predictions import Prediction
from deeplambda.service.metrics import MetricPublisher
from deeplambda.state import registry
from deeplambda.state.tables import SKEW
from deeplambda.state.versions import load_code

FIELDS = ("prediction", "confidence", "value", "scores")
REFUSED = "refused"
"""The field of an event that the stream scored and batch refuses."""
TOLERANCE = 0.02
"""Of probabilities, and relative of numbers: the model service computes in bfloat16 where that is quicker, which has
three digits."""

_LOOKED_BACK, _AROUND, _KEPT = timedelta(days=1), timedelta(minutes=1), timedelta(days=90)
_EVENTS, _RUNS = 1_000, 20
_EXAMPLES = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Skew:
    """Of one version, of how many events one field was compared, in how many it differs, and some of those."""

    version: int
    field: str
    compared: int
    different: int
    examples: list[str]


def measure(spark: SparkSession, settings: Settings, application: str) -> list[Skew]:
    """Compare about a thousand events and record what came of it; none where nothing could be compared.

    Raises: NotReady.
    """
    found = [
        skew
        for version, said in _by_version(_sample(settings, application)).items()
        for skew in _of_version(spark, settings, application, version, said)
    ]
    at, engine = now(), mysql.engine(settings, "platform")
    with mysql.mysql_errors(), engine.begin() as connection:
        connection.execute(delete(SKEW).where(SKEW.c.application == application, SKEW.c.at < at - _KEPT))
        if found:
            connection.execute(insert(SKEW), [{"application": application, "at": at, **vars(each)} for each in found])
    with Publisher(settings) as publisher:
        metrics = MetricPublisher(publisher, layer="batch", part="archive", application=application)
        if found:
            metrics.publish("skew", max(each.different / each.compared for each in found), "share")
    return found


def differing(said: Prediction, found: Mapping[str, Any], objective: Objective, usual: float = 1.0) -> set[str]:
    """Fields in which stream and batch differ. found: a row of the batch view. objective: of the version that said
    both. usual: how large predicted numbers are.

    Of two classes that are as likely as one another, to within the tolerance, either may be the answer. So may those on
    the two sides of a threshold that both are as near to.
    """
    of_stream, scores = said.scores or {}, {} if found["scores"] is None else from_json(found["scores"])
    confidence = said.confidence
    differs = set()
    if said.prediction != found["prediction"]:
        either = _either(objective, (said.prediction, of_stream), (found["prediction"], scores))
        same_number = said.value is not None and _near(said.value, found["value"], usual)
        if not (either or same_number):
            differs.add("prediction")
        if isinstance(objective, Classification) and objective.threshold is not None and confidence is not None:
            confidence = 1 - confidence  # in the class that batch predicts
    if not _near(confidence, found["confidence"]):
        differs.add("confidence")
    if not _near(said.value, found["value"], usual):
        differs.add("value")
    if any(abs(of_stream[name] - scores[name]) > TOLERANCE for name in of_stream.keys() & scores.keys()):
        differs.add("scores")
    return differs


_Answer = tuple[str, Mapping[str, float]]
"""A prediction and the scores that it was made of."""


def _either(objective: Objective, stream: _Answer, batch: _Answer) -> bool:
    """Whether two unlike predictions are so near to one another that rounding decides between them."""
    (one, _), (other, scores) = stream, batch
    if isinstance(objective, MultiLabel):
        names, threshold = (set(one.split(",")) ^ set(other.split(","))) - {""}, objective.threshold
    elif isinstance(objective, Classification) and objective.threshold is not None:
        names, threshold = {one, other} - {objective.classes[0]}, objective.threshold
    else:
        return scores.get(one, -1.0) >= scores.get(other, 1.0) - TOLERANCE
    return all(_near(of.get(name), threshold) for name in names for _, of in (stream, batch))


def _near(one: float | None, other: float | None, usual: float | None = None) -> bool:
    """Of numbers, whose usual size is given: relative to the larger one, or where both are near 0 to what is usual."""
    if one is None or other is None:
        return one is None and other is None
    if usual is None:
        return math.isclose(one, other, abs_tol=TOLERANCE, rel_tol=0.0)
    return math.isclose(one, other, abs_tol=TOLERANCE * usual, rel_tol=TOLERANCE)


def _sample(settings: Settings, application: str) -> Iterator[Prediction]:
    topic, since_ms = topics.predictions(application), int((now() - _LOOKED_BACK).timestamp() * 1e3)
    with closing(kafka.consumer(settings, topic)) as reader, kafka.kafka_errors(settings):
        partitions: list[TopicPartition] = sorted(reader.assignment())
        ends = reader.end_offsets(partitions)
        starts = reader.offsets_for_times(dict.fromkeys(partitions, since_ms))
        reader.pause(*partitions)
        for partition in partitions:
            if (start := starts.get(partition)) is None:
                continue
            records = ends[partition] - start.offset
            wanted = math.ceil(_EVENTS / len(partitions))
            runs = 1 if records <= wanted else _RUNS
            for run in range(runs):
                begin = start.offset + records * run // runs
                yield from _run(reader, partition, begin, min(ends[partition], begin + math.ceil(wanted / runs)))


def _run(reader: Any, partition: TopicPartition, begin: int, end: int) -> Iterator[Prediction]:
    """The predictions at the offsets from `begin` up to, but not including, `end`."""
    reader.resume(partition)
    reader.seek(partition, begin)
    while reader.position(partition) < end:
        for record in reader.poll(1_000, end - begin).get(partition, ()):
            try:
                if record.offset < end:
                    yield Prediction.model_validate_json(record.value or b"")
            except ValidationError:
                continue
    reader.pause(partition)


def _by_version(sample: Iterable[Prediction]) -> dict[int, list[Prediction]]:
    found: dict[int, list[Prediction]] = defaultdict(list)
    for each in sample:
        found[each.model_version].append(each)
    return found


def _of_version(
    spark: SparkSession, settings: Settings, application: str, version: int, said: list[Prediction]
) -> Iterator[Skew]:
    try:
        with mysql.mysql_errors(), mysql.engine(settings, "platform").connect() as connection:
            card = registry.published_card(connection, application, version)
        objective = load_code(ObjectStore(settings), settings, card).application.objective
        rows = _scored(settings, card, _archived(spark, application, said)).collect()
    except BadInput as exc:
        _log.warning("what the stream said by %s/%d is compared with nothing: %s", application, version, exc)
        return
    batch = {(row.kafka_partition, row.kafka_offset): row.asDict() for row in rows}
    compared = [(each, batch[at]) for each in said if (at := (each.kafka_partition, each.kafka_offset)) in batch]
    usual = statistics.median([abs(row["value"]) for _, row in compared if row["value"] is not None] or [0.0])
    differs: dict[str, list[str]] = defaultdict(list)
    for each, row in compared:
        for field in {REFUSED} if row["reason"] is not None else differing(each, row, objective, usual):
            differs[field].append(each.event_id)
    for field in (*FIELDS, REFUSED) if compared else ():
        ids = differs[field]
        yield Skew(version=version, field=field, compared=len(compared), different=len(ids), examples=ids[:_EXAMPLES])


def _archived(spark: SparkSession, application: str, said: list[Prediction]) -> DataFrame:
    """The archived events at the positions of some predictions."""
    positions = spark.createDataFrame(
        [(each.kafka_partition, each.kafka_offset) for each in said], "kafka_partition INT, kafka_offset BIGINT"
    )
    times = [each.received_at for each in said]
    between = min(times) - _AROUND, max(times) + _AROUND  # so that only the days in question are read
    events = spark.table(f"lake.{application}.events").where(F.col("kafka_timestamp").between(*between))
    return events.join(F.broadcast(positions.distinct()), ["kafka_partition", "kafka_offset"])
