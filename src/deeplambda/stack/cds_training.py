"""Make the CDS file of Spark's JVM, once for a set of jars and a Java, by a session that uses all that sessions use.

`python -m deeplambda.stack.cds_training` is that session; `deeplambda.jvm.cds` says what the file is for.
"""

import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from deeplambda.config import Settings, load_settings
from deeplambda.jvm.cds import as_setting, cds_file, java_options
from deeplambda.jvm.files import only_one

_TRAINING_TIMEOUT_S = 300
_KEPT_FILES = 3
_log = logging.getLogger(__name__)


def make_if_missing(settings: Settings) -> None:
    """Make the CDS file, with the stack's stores up. The step `prepare` of each part that runs Spark.

    A failure is logged: everything works without the file, and starts slower.
    """
    file = cds_file(settings)
    if file.exists():
        return
    with only_one(settings.cache_dir / "cds.lock"):
        if file.exists():
            return
        log = settings.data_dir / "logs" / "cds-training.log"
        with log.open("w") as output:
            command = [sys.executable, "-m", "deeplambda.stack.cds_training"]
            try:
                subprocess.run(command, stdout=output, stderr=output, check=True, timeout=_TRAINING_TIMEOUT_S)
            except subprocess.SubprocessError as exc:
                _log.warning("Spark will start slower, for its CDS file was not made: %s; see %s", exc, log)


def main() -> None:
    """Run a session that loads what the platform's sessions load, and keep its classes when it ends."""
    from pyspark import SparkContext

    from deeplambda.adapters.lake import spark_session

    settings = load_settings()
    file = cds_file(settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    options = (*java_options(settings), f"-XX:ArchiveClassesAtExit={unfinished}")
    spark = spark_session(settings, "CDS training", {"spark.driver.extraJavaOptions": as_setting(options)})
    with tempfile.TemporaryDirectory(dir=settings.data_dir) as scratch:
        _use_what_sessions_use(spark, settings, Path(scratch))
    spark.stop()
    jvm = SparkContext._gateway.proc
    jvm.stdin.close()  # pyspark's JVM ends with its standard input
    jvm.wait()
    unfinished.rename(file)
    newest_first = sorted(file.parent.glob("*.jsa"), key=lambda path: path.stat().st_mtime, reverse=True)
    for outdated in newest_first[_KEPT_FILES:]:
        outdated.unlink()


def _use_what_sessions_use(spark: Any, settings: Settings, scratch: Path) -> None:
    """Iceberg on S3 through the metastore, Kafka in and out of a stream, Python functions, MySQL over JDBC."""
    spark.sql("CREATE NAMESPACE IF NOT EXISTS lake.warm_up")
    spark.sql(
        "CREATE TABLE IF NOT EXISTS lake.warm_up.numbers (id BIGINT, text STRING, at TIMESTAMP) USING iceberg "
        "PARTITIONED BY (days(at))"
    )
    numbers = spark.range(100).selectExpr("id", "CAST(id AS STRING) AS text", "current_timestamp() AS at")
    numbers.mapInArrow(lambda batches: batches, numbers.schema).writeTo("lake.warm_up.numbers").append()
    spark.sql(
        "MERGE INTO lake.warm_up.numbers t USING (SELECT id, text, at FROM lake.warm_up.numbers) s ON t.id = s.id "
        "WHEN MATCHED THEN UPDATE SET text = s.text WHEN NOT MATCHED THEN INSERT *"
    )
    spark.sql(
        "SELECT text, count(*), max(at) FROM lake.warm_up.numbers WHERE id > 5 GROUP BY text ORDER BY 2"
    ).collect()
    (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
        .option("subscribePattern", ".*events")
        .option("startingOffsets", "earliest")
        .load()
        .selectExpr("CAST(key AS STRING) AS id", "CAST(value AS STRING) AS value", "from_json('{}', 'a INT') AS parsed")
        .writeStream.foreachBatch(lambda frame, _: frame.mapInArrow(lambda batches: batches, frame.schema).count())
        .option("checkpointLocation", str(scratch))
        .trigger(availableNow=True)
        .start()
        .awaitTermination(60)
    )
    spark.read.jdbc(
        f"jdbc:mysql://{settings.mysql_address}/{settings.mysql_database}",
        "horizons",
        properties={
            "user": "reader",
            "password": settings.mysql_reader_password.get_secret_value(),
            "driver": "com.mysql.cj.jdbc.Driver",
        },
    ).collect()
    spark.sql("DROP TABLE lake.warm_up.numbers PURGE")
    spark.sql("DROP NAMESPACE lake.warm_up")


if __name__ == "__main__":
    main()
