"""The Spark session of a part that runs streams, with the platform's own Java in its JVM."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

import deeplambda.jvm
from deeplambda.adapters.kafka import spark_options
from deeplambda.adapters.lake import spark_session
from deeplambda.config import Settings
from deeplambda.jvm.jars import spark_jars
from deeplambda.jvm.java_sources import compiled_jar

_SOURCES = Path(deeplambda.jvm.__file__).with_name("java")


def stream_session(settings: Settings, name: str, conf: Mapping[str, str]) -> SparkSession:
    """A session as `spark_session` makes it, whose streams keep a local checkpoint without starting processes."""
    jar = compiled_jar(_SOURCES, settings, spark_jars(settings))
    # Behind Spark's own jars, for the class path has to begin as that of the CDS file does.
    os.environ["SPARK_DIST_CLASSPATH"] = str(jar)
    own = {}
    if settings.checkpoints.startswith("file:"):
        own["spark.sql.streaming.checkpointFileManagerClass"] = "deeplambda.spark.LocalCheckpoints"
    return spark_session(settings, name, own | dict(conf))


def event_stream(spark: SparkSession, settings: Settings, topic: str, starts: str, **options: int) -> DataFrame:
    """A topic's records as Spark's Kafka source gives them; where there are none, it waits at the broker for the next.

    starts: `startingOffsets`. options: further ones of that source.
    """
    return (
        spark.readStream.format("deeplambda.spark.EventSource")
        .options(**spark_options(settings), **options)
        .option("subscribe", topic)
        .option("startingOffsets", starts)
        .option("failOnDataLoss", "true")
        .load()
    )


def slots(spark: SparkSession) -> int:
    """How many tasks a micro-batch is divided into: one for each core that the session has, or may get."""
    return cores_to_get(spark.sparkContext.defaultParallelism, spark.conf.get)


def cores_to_get(now: int, option: Callable[[str, str], str | None]) -> int:
    """The cores that a session has now; with dynamic allocation up to a bound, those that waiting tasks may bring it.

    option: the session's options, by name and what counts where one is not set. With no more tasks than cores none
    would wait, and no executor would ever be added.
    """
    if option("spark.dynamicAllocation.enabled", "false") != "true":
        return now
    executors, cores = option("spark.dynamicAllocation.maxExecutors", "0"), option("spark.executor.cores", "1")
    return max(now, int(executors or 0) * int(cores or 1))
