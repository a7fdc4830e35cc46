"""What was measured is kept in `lake.<application>.data_quality`, and told on `deeplambda.lifecycle`."""

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from deeplambda.adapters.kafka import Publisher
from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.records.lifecycle import QualityMeasured


def keep(spark: SparkSession, settings: Settings, measured: QualityMeasured) -> None:
    """Append a row for each measure, then publish the record; of a generation that is taken up no row is kept twice.

    Raises: NotReady.
    """
    table = f"lake.{measured.application}.data_quality"
    facts = {
        "subject": measured.subject,
        "day": measured.day,
        "ingest": measured.ingest,
        "snapshot": measured.snapshot,
        "measured_at": measured.at,
    }
    rows = [facts | found.model_dump() for found in measured.measures]
    schema = spark.table(table).schema
    values = [[row[name] for name in schema.names] for row in rows]
    same = spark.table(table).where((F.col("subject") == "generation") & (F.col("ingest") == measured.ingest))
    if measured.subject != "generation" or same.isEmpty():
        spark.createDataFrame(values, schema).coalesce(1).writeTo(table).append()
    with Publisher(settings) as publisher:
        publisher.send(topics.LIFECYCLE, measured.application, measured)
