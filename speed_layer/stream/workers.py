"""Scoring a micro-batch on Spark's workers: each task has a scorer, and tells how long it took in which hop."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

import pyarrow as pa
from pyspark import Accumulator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from deeplambda.adapters.kafka import spark_options
from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.service.stream_session import slots
from speed_layer.stream.scoring import Scorer, timed

_RECORDS = pa.schema([("topic", pa.string()), ("key", pa.binary()), ("value", pa.binary())])
_HOPS = ("read", "transform", "model")
"""`read` is until the rows are in Python. What they publish goes from the JVM while others are scored."""


class Workers:
    """All workers of a Spark session, for one application's batches."""

    def __init__(self, spark: SparkSession, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, name
        # Made once: Spark's driver remembers each.
        self._hops_ms = {hop: spark.sparkContext.accumulator(0.0) for hop in _HOPS}

    def score(self, batch: DataFrame) -> dict[str, float]:
        """Score rows of Spark's Kafka source; returns, once Kafka has stored every record, the time by hop, that of
        tasks at once added up. Raises: NotReady, wrapped by Spark, when the model service does not answer."""
        for sum_ms in self._hops_ms.values():
            sum_ms.value = 0.0
        (
            batch.coalesce(slots(batch.sparkSession))  # each of many partitions would pay for a hand-over of its own
            .mapInArrow(_scoring(self._settings, self._name, self._hops_ms), from_arrow_schema(_RECORDS))
            .write.format("kafka")
            .options(**spark_options(self._settings))
            .option("kafka.max.request.size", str(topics.RECORD_LIMIT_BYTES))
            .option("kafka.acks", "all")
            .save()
        )
        return {hop: sum_ms.value for hop, sum_ms in self._hops_ms.items()}


@lru_cache(maxsize=64)
def _scorer(settings: Settings, name: str) -> Scorer:
    return Scorer(settings, name)


def _scoring(
    settings: Settings, name: str, sums_ms: Mapping[str, Accumulator[float]]
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """A function for `mapInArrow`: rows of Spark's Kafka source in, records for its Kafka sink out."""

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        scorer = _scorer(settings, name)
        scorer.hops_ms.clear()
        while True:
            with timed(scorer.hops_ms, "read"):
                batch = next(batches, None)
            if batch is None:
                break
            out = scorer.records(batch.to_pylist())
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, field.type) for column, field in zip(zip(*out, strict=True), _RECORDS, strict=True)],
                schema=_RECORDS,
            )
        for hop, sum_ms in sums_ms.items():
            sum_ms.add(scorer.hops_ms[hop])

    return score
