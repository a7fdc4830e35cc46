"""The checkpoint of a Spark stream over one Kafka topic: how far it has come, and where it goes on."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json
from pyspark.sql import SparkSession

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.records.expiry import Reader
from deeplambda.service.expiry import resumed


def starting_offsets(
    spark: SparkSession, settings: Settings, reader: Reader, checkpoint: str, stored: Mapping[int, int] | None = None
) -> str:
    """`startingOffsets` for Spark's Kafka source, which heeds it only where there is no checkpoint.

    1. Take the position of the checkpoint, or of what is stored where that is further.
    2. Where Kafka no longer has the record there, `resumed` raises, unless a person has given up what is lost.
    3. Where its checkpoint would have the stream go on before that, remove it: Spark moves on by no other way. One in
       which no batch was ever finished goes too, for it may name offsets that have expired.
    stored: by partition, the offset after the last record that the sink holds; a sink that does not know gets the
    records since the last finished batch again.
    Raises: Overtaken, NotReady, ConfigurationError for a damaged checkpoint.
    """
    finished = finished_offsets(spark, checkpoint, reader.topic)
    known = stored or {}
    position = {p: max(finished.get(p, 0), known.get(p, 0)) for p in finished.keys() | known.keys()}
    starts = resumed(settings, reader, position)
    if not finished or any(starts.get(partition, offset) > offset for partition, offset in finished.items()):
        _Folder(spark, checkpoint).remove()
    return json.dumps({reader.topic: starts})


def finished_offsets(spark: SparkSession, checkpoint: str, topic: str) -> dict[int, int]:
    """By partition, the offset after the last batch that was finished; empty where none was.

    Source: the log of Spark's `OffsetSeqLog`: a version, metadata, then a line of JSON for each source.
    Raises: ConfigurationError when that batch's offsets are missing or damaged.
    """
    folder = _Folder(spark, checkpoint)
    batches = [int(name) for name in folder.names("commits") if name.isdigit()]
    if not batches:
        return {}
    try:
        source = folder.read(f"offsets/{max(batches)}").splitlines()[2]
        return {int(partition): offset for partition, offset in from_json(source)[topic].items()}
    except (LookupError, ValueError, FileNotFoundError) as exc:
        raise ConfigurationError(
            f"the checkpoint {checkpoint} is damaged: batch {max(batches)} is finished, but has no offsets; restore "
            "it, or remove the folder: its stream then goes on after what is stored, or reads all that Kafka has"
        ) from exc


class _Folder:
    """A folder of any file system that Hadoop knows."""

    def __init__(self, spark: SparkSession, location: str) -> None:
        self._jvm: Any = spark._jvm
        self._location = location
        path = self._path()
        self._files = path.getFileSystem(spark._jsc.hadoopConfiguration())

    def names(self, folder: str) -> list[str]:
        """What `folder` in it holds; nothing where there is no such folder."""
        path = self._path(folder)
        return [each.getPath().getName() for each in self._files.listStatus(path)] if self._files.exists(path) else []

    def read(self, file: str) -> str:
        """The text of `file`. Raises: FileNotFoundError."""
        path = self._path(file)
        if not self._files.exists(path):
            raise FileNotFoundError(file)
        stream = self._files.open(path)
        try:
            return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    def remove(self) -> None:
        self._files.delete(self._path(), True)

    def _path(self, *inside: str) -> Any:
        return self._jvm.org.apache.hadoop.fs.Path("/".join((self._location, *inside)))
