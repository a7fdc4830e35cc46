"""The Spark session of a part that runs streams, with the platform's own Java in its JVM."""

import os
from collections.abc import Mapping
from pathlib import Path

from pyspark.sql import SparkSession

import deeplambda.jvm
from deeplambda.adapters.lake import spark_session
from deeplambda.config import Settings
from deeplambda.jvm.jars import spark_jars
from deeplambda.jvm.java_sources import compiled_jar

EVENT_SOURCE = "deeplambda.spark.EventSource"
"""Spark's Kafka source, which waits for records where there are none; for `readStream.format`."""

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
