"""The checkpoint of a Spark stream over one Kafka topic: how far it has come, and where it goes on."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json
from pyspark.sql import SparkSession

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.records.expiry import Reader
from deeplambda.service.expiry import resumed


class Finished(NamedTuple):
    """The last batch that a stream has finished. query: Spark's id of the stream. offsets: where, by partition, the
    next batch begins."""

    query: str
    batch: int
    offsets: Mapping[int, int]


def starting_offsets(
    spark: SparkSession,
    settings: Settings,
    reader: Reader,
    checkpoint: str,
    stored: Callable[[Finished | None], Mapping[int, int]] = lambda finished: {},
) -> str:
    """`startingOffsets` for Spark's Kafka source, which heeds it only where there is no checkpoint.

    1. Take the position of the checkpoint, or of what is stored where that is further.
    2. Where Kafka no longer has the record there, `resumed` raises, unless a person has given up what is lost.
    3. Where its checkpoint would have the stream go on before that, remove it: Spark moves on by no other way. One in
       which no batch was ever finished goes too, for it may name offsets that have expired.
    stored: gives, by partition, the offset after the last record that the sink holds, or nothing where that is what the
    checkpoint says; a sink that does not know gets the records since the last finished batch again.
    Raises: Overtaken, Truncated, NotReady, ConfigurationError for a damaged checkpoint.
    """
    last = last_finished(spark, checkpoint, reader.topic)
    finished, known = last.offsets if last else {}, stored(last)
    position = {p: max(finished.get(p, 0), known.get(p, 0)) for p in finished.keys() | known.keys()}
    # A partition that was added since is read from its beginning: Spark takes it from nowhere else.
    starts = resumed(settings, reader, position, added=0 if finished else None)
    if not finished or any(start > finished.get(partition, 0) for partition, start in starts.items()):
        _Folder(spark, checkpoint).remove()
    return json.dumps({reader.topic: starts})


def last_finished(spark: SparkSession, checkpoint: str, topic: str) -> Finished | None:
    """The last finished batch of a checkpoint; None where there is none.

    Source: the log of Spark's `OffsetSeqLog`: a version, metadata, then a line of JSON for each source.
    Raises: ConfigurationError when that batch's offsets are missing or damaged.
    """
    folder = _Folder(spark, checkpoint)
    batches = [int(name) for name in folder.names("commits") if name.isdigit()]
    if not batches:
        return None
    try:
        source = folder.read(f"offsets/{max(batches)}").splitlines()[2]
        offsets = {int(partition): offset for partition, offset in from_json(source)[topic].items()}
        return Finished(from_json(folder.read("metadata"))["id"], max(batches), offsets)
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
