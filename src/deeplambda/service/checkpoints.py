"""The checkpoint of a Spark stream over one Kafka topic: how far it has come, and where it goes on."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from pydantic_core import from_json
from pyspark.sql import SparkSession

from deeplambda.adapters.kafka import end_offsets
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.records.expiry import Reader, cuts
from deeplambda.service.expiry import resumed

_METADATA, _OFFSETS, _COMMITS = "metadata", "offsets", "commits"
_STARTS = "starts"
"""Ours, beside Spark's files: where a stream goes on whose checkpoint was removed, until its new one has a batch."""

_LOG = logging.getLogger(__name__)


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

    1. Forget batches of the checkpoint that a crash of the machine has left empty.
    2. Take the position of the checkpoint, or of what is stored where that is further. A checkpoint that was removed
       has left its position.
    3. Where Kafka no longer has the record there, or ends before a batch that was planned, `resumed` raises, unless a
       person has given up what is lost.
    4. Where its checkpoint would have the stream go on before that, or with a batch past the topic's end, remove it:
       Spark moves on by no other way. One in which no batch was ever finished goes too, for it may name offsets that
       have expired.
    stored: gives, by partition, the offset after the last record that the sink holds, or nothing where that is what the
    checkpoint says; a sink that does not know gets the records since the last finished batch again.
    Raises: Overtaken, Truncated, NotReady, ConfigurationError for a damaged checkpoint.
    """
    folder = _Folder(spark, checkpoint)
    _forget_empty(folder)
    left = _starts_left(folder)
    last = last_finished(spark, checkpoint, reader.topic) if folder.has(_METADATA) or not left else None
    finished, known = last.offsets if last else left, stored(last)
    position = {p: max(finished.get(p, 0), known.get(p, 0)) for p in finished.keys() | known.keys()}
    planned = _planned(folder, reader.topic, last.batch) if last else {}
    # A partition that was added since is read from its beginning: Spark takes it from nowhere else.
    starts = resumed(settings, reader, position, added=0 if finished else None, planned=planned)
    behind = any(start > finished.get(partition, 0) for partition, start in starts.items())
    if not last or behind or (planned and cuts(planned, end_offsets(settings, reader.topic))):
        _remove(folder, starts if position else {})
    elif left:
        folder.delete(_STARTS)
    return json.dumps({reader.topic: starts})


def last_finished(spark: SparkSession, checkpoint: str, topic: str) -> Finished | None:
    """The last finished batch of a checkpoint; None where there is none.

    Raises: ConfigurationError when that batch's offsets are missing or damaged.
    """
    folder = _Folder(spark, checkpoint)
    batch = max(folder.batches(_COMMITS), default=None)
    if batch is None:
        return None
    with _damage(folder, batch):
        return Finished(from_json(folder.read(_METADATA))["id"], batch, _offsets(folder, batch, topic))


def _planned(folder: "_Folder", topic: str, finished: int) -> Mapping[int, int]:
    """Where the batch that the stream had begun after the last finished one ends; nothing where there is none."""
    batch = max(folder.batches(_OFFSETS), default=finished)
    with _damage(folder, batch):
        return _offsets(folder, batch, topic) if batch > finished else {}


def _offsets(folder: "_Folder", batch: int, topic: str) -> Mapping[int, int]:
    # Source: the log of Spark's `OffsetSeqLog`: a version, metadata, then a line of JSON for each source.
    source = folder.read(f"{_OFFSETS}/{batch}").splitlines()[2]
    return {int(partition): offset for partition, offset in from_json(source)[topic].items()}


@contextmanager
def _damage(folder: "_Folder", batch: int) -> Iterator[None]:
    try:
        yield
    except (LookupError, ValueError, FileNotFoundError) as exc:
        raise ConfigurationError(
            f"the checkpoint {folder.location} is damaged: its batch {batch} has no offsets; restore it, or remove the "
            "folder: its stream then goes on after what is stored, or reads all that Kafka has"
        ) from exc


def _forget_empty(folder: "_Folder") -> None:
    """Forget the batches from the first on whose offsets a crash of the machine has left empty: Spark stops at it.

    Their records are read again; which of them the sink has, `stored` knows.
    """
    offsets, commits = folder.batches(_OFFSETS), folder.batches(_COMMITS)
    first = min((batch for batch, size_bytes in offsets.items() if not size_bytes), default=math.inf)
    # It may be broken off: until the end no batch is finished that has no offsets, and the empty ones are seen again.
    empty = [f"{_COMMITS}/{n}" for n in sorted(commits, reverse=True) if n >= first or not commits[n]]
    empty += [f"{_OFFSETS}/{n}" for n in sorted(offsets, reverse=True) if n >= first]
    if empty:
        _LOG.warning("the checkpoint %s had empty files and goes on without %s", folder.location, ", ".join(empty))
    for file in empty:
        folder.delete(file)


def _starts_left(folder: "_Folder") -> Mapping[int, int]:
    if not folder.has(_STARTS):
        return {}
    return {int(partition): offset for partition, offset in from_json(folder.read(_STARTS)).items()}


def _remove(folder: "_Folder", starts: Mapping[int, int]) -> None:
    """Remove the checkpoint, and leave `starts`, where there are any, in its folder: a stream that ends before it has
    finished a batch goes on there. Without metadata it is no checkpoint, so these go before the rest."""
    if starts:
        folder.write(_STARTS, json.dumps(starts))
    folder.delete(_METADATA)
    for name in folder.names():
        if name != _STARTS or not starts:
            folder.delete(name)


class _Folder:
    """A folder of any file system that Hadoop knows."""

    def __init__(self, spark: SparkSession, location: str) -> None:
        self._jvm: Any = spark._jvm
        self._options = spark._jsparkSession.sessionState().newHadoopConf()
        self.location = location
        self._files = self._path().getFileSystem(self._options)

    def names(self) -> list[str]:
        """What is in it; nothing where there is no such folder."""
        return [each.getPath().getName() for each in self._list()]

    def batches(self, log: str) -> dict[int, int]:
        """Of one of Spark's logs, the size in bytes of each batch's file."""
        files = {each.getPath().getName(): each for each in self._list(log)}
        return {int(name): file.getLen() for name, file in files.items() if name.isdigit()}

    def has(self, file: str) -> bool:
        return bool(self._files.exists(self._path(file)))

    def read(self, file: str) -> str:
        """The text of `file`. Raises: FileNotFoundError."""
        if not self.has(file):
            raise FileNotFoundError(file)
        stream = self._files.open(self._path(file))
        try:
            return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    def write(self, file: str, text: str) -> None:
        """Write `file` in one step, as Spark does its own; replaces."""
        managers = getattr(self._jvm.org.apache.spark.sql.execution.streaming.checkpointing, "CheckpointFileManager$")
        manager = getattr(managers, "MODULE$").create(self._path(), self._options)
        manager.mkdirs(self._path())
        stream = manager.createAtomic(self._path(file), True)
        try:
            stream.write(text.encode())
            stream.hsync()
        except BaseException:
            stream.cancel()
            raise
        stream.close()

    def delete(self, name: str) -> None:
        self._files.delete(self._path(name), True)

    def _list(self, *inside: str) -> list[Any]:
        path = self._path(*inside)
        return list(self._files.listStatus(path)) if self._files.exists(path) else []

    def _path(self, *inside: str) -> Any:
        return self._jvm.org.apache.hadoop.fs.Path("/".join((self.location, *inside)))
