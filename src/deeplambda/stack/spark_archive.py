"""A class-data archive for Spark: what its JVM would load and verify at every start, mapped from a file instead.

With it and the quick compiler a session costs a quarter of the processor time (4 s instead of 20 s until the first
answer from Iceberg). The archive is made once for a set of jars and a Java, by a session that does a little of
everything: `python -m deeplambda.stack.spark_archive`. A JVM that finds no archive, or an unfitting one, does without.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from deeplambda.config import Settings, load_settings
from deeplambda.stack.files import only_one
from deeplambda.stack.ivy import java_program, pyspark_jars
from deeplambda.stack.jars import spark_jars

_TRAINING_TIMEOUT_S = 300
_KEPT_ARCHIVES = 3
# Complaints about an unfitting archive would go to standard output otherwise.
_QUIET = ("-Xlog:disable", "-Xlog:all=error:stderr")
_log = logging.getLogger(__name__)


def java_options(settings: Settings) -> tuple[str, ...]:
    """Options for the JVM of a local Spark session: the archive, where there is one, and the quick compiler.

    The quick compiler makes slower code, in less time: on few cores, in jobs of seconds to minutes, it wins.
    """
    archive = archive_path(settings)
    mapped = (f"-XX:SharedArchiveFile={archive}", *_QUIET) if archive.exists() else ()
    # A small first heap: a sixty-fourth of the machine's memory, which is the default, is more than a quiet part needs.
    return ("-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", *mapped)


def archive_path(settings: Settings) -> Path:
    """Where the archive for these jars and this Java lies, or would."""
    java = Path(java_program()).resolve()
    fingerprint = hashlib.sha256(f"{java} {java.stat().st_mtime_ns}".encode())
    for jar in (*sorted(pyspark_jars().glob("*.jar")), *spark_jars(settings)):
        fingerprint.update(f"{jar} {jar.stat().st_mtime_ns}".encode())  # the JVM compares the same
    return settings.cache_dir / "archives" / f"spark-{fingerprint.hexdigest()[:16]}.jsa"


def make_if_missing(settings: Settings) -> None:
    """Make the archive, with the stack's stores up; a failure is logged, for all works without."""
    archive = archive_path(settings)
    if archive.exists():
        return
    with only_one(settings.cache_dir / "archives.lock"):
        if archive.exists():
            return
        log = settings.data_dir / "logs" / "spark-archive.log"
        with log.open("w") as output:
            command = [sys.executable, "-m", "deeplambda.stack.spark_archive"]
            try:
                subprocess.run(command, stdout=output, stderr=output, check=True, timeout=_TRAINING_TIMEOUT_S)
            except subprocess.SubprocessError as exc:
                _log.warning("Spark will start slower, for its archive was not made: %s; see %s", exc, log)


def main() -> None:
    """Run a session that loads what the platform's sessions load, and keep its classes when it ends."""
    from pyspark import SparkContext

    from deeplambda.adapters.lake import spark_session

    settings = load_settings()
    archive = archive_path(settings)
    archive.parent.mkdir(parents=True, exist_ok=True)
    unfinished = archive.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    options = (*java_options(settings), f"-XX:ArchiveClassesAtExit={unfinished}")
    spark = spark_session(
        settings, "archive of classes", {"spark.driver.extraJavaOptions": " ".join(f'"{option}"' for option in options)}
    )
    with tempfile.TemporaryDirectory(dir=settings.data_dir) as scratch:
        _do_a_little_of_everything(spark, settings, Path(scratch))
    spark.stop()
    jvm = SparkContext._gateway.proc
    jvm.stdin.close()  # its sign to end
    jvm.wait()
    unfinished.rename(archive)
    newest_first = sorted(archive.parent.glob("*.jsa"), key=lambda path: path.stat().st_mtime, reverse=True)
    for outdated in newest_first[_KEPT_ARCHIVES:]:
        outdated.unlink()


def _do_a_little_of_everything(spark: Any, settings: Settings, scratch: Path) -> None:
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
            "user": "analyst",
            "password": settings.analyst_password.get_secret_value(),
            "driver": "com.mysql.cj.jdbc.Driver",
        },
    ).collect()
    spark.sql("DROP TABLE lake.warm_up.numbers PURGE")
    spark.sql("DROP NAMESPACE lake.warm_up")


if __name__ == "__main__":
    main()
