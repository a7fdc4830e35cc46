"""The archive goes on where its table ends, without reading what it has archived."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from batch_layer.archive import archive_streams, where_table_ends
from deeplambda.adapters.kafka import Publisher, create_topics
from deeplambda.adapters.lake import create_tables, current_snapshot, snapshot_size
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.loading import pack_application
from deeplambda.records import topics
from tests.integration.own_model_service import OwnService


class Archive:
    """The table `events` of an application that exists for one test, and the stream that writes it."""

    def __init__(self, stack: Settings, spark: SparkSession, folder: Path) -> None:
        service = OwnService(stack, folder)
        self.checkpoints = folder / "checkpoints"
        location = {"checkpoint_location": f"file:{self.checkpoints}"}
        self.name, self.settings = service.name, service.settings.model_copy(update=location)
        self.spark, self.table = spark, f"lake.{self.name}.events"
        create_tables(spark, pack_application(self.name, self.settings).load())
        create_topics(self.settings)

    def take(self, events: int) -> None:
        """Send events and run the stream until it has finished them."""
        with Publisher(self.settings) as publisher:
            for n in range(events):
                publisher.send(topics.events(self.name), str(n), n)
        query = archive_streams(self.spark, self.settings, self.name)[0].start()
        try:
            query.processAllAvailable()
        finally:
            query.stop()

    def put(self, positions: list[tuple[int, int]]) -> None:
        """Commit a file of events at these partitions and offsets."""
        at, columns = datetime.now(UTC), self.spark.table(self.table).columns
        row = {"event_id": "e", "kafka_timestamp": at, "value": b"{}", "archived_at": at}
        rows = [row | {"kafka_partition": partition, "kafka_offset": offset} for partition, offset in positions]
        schema = self.spark.table(self.table).schema
        frame = self.spark.createDataFrame([[each[column] for column in columns] for each in rows], schema)
        frame.coalesce(1).writeTo(self.table).append()

    def lose_files(self) -> None:
        """Have whoever reads a data file of today fail."""
        paths = [row.file_path for row in self.spark.sql(f"SELECT file_path FROM {self.table}.files").collect()]
        bucket = f"s3a://{self.settings.s3_bucket}/"
        ObjectStore(self.settings).delete(path.removeprefix(bucket) for path in paths)

    def rows(self) -> int:
        self.spark.catalog.refreshTable(self.table)
        snapshot = current_snapshot(self.spark, self.table)
        return snapshot_size(self.spark, self.table, snapshot).rows if snapshot else 0


@pytest.fixture
def archive(stack: Settings, spark: SparkSession, tmp_path: Path) -> Archive:
    return Archive(stack, spark, tmp_path)


def test_where_the_table_ends_is_read_of_few_files(archive: Archive) -> None:
    assert where_table_ends(archive.spark, archive.table) == {}
    archive.put([(partition, offset) for partition in (0, 1) for offset in range(10)])
    archive.lose_files()
    archive.put([(2, offset) for offset in range(5)])
    archive.put([(0, 6_000_000), (1, 5_999_000), (0, 6_000_001)])
    assert where_table_ends(archive.spark, archive.table) == {0: 6_000_002, 1: 5_999_001, 2: 5}


def test_a_stream_goes_on_after_its_checkpoint_or_where_its_table_is_further(archive: Archive, tmp_path: Path) -> None:
    archive.take(10)
    shutil.copytree(archive.checkpoints, tmp_path / "older")
    archive.take(5)
    shutil.rmtree(archive.checkpoints)
    (tmp_path / "older").rename(archive.checkpoints)
    archive.take(3)
    positions = archive.spark.table(archive.table).select("kafka_partition", "kafka_offset")
    assert (archive.rows(), positions.distinct().count()) == (18, 18), "once each, by a checkpoint that is too old"
    archive.lose_files()
    archive.take(2)
    assert archive.rows() == 20, "it has read no file"
