"""Class-data sharing (AppCDS) for Spark: classes that a JVM would load and verify at every start, mapped from a file.

With the file and the quick compiler a session costs a quarter of the processor time (4 s instead of 20 s until the
first answer from Iceberg). `deeplambda.stack.cds_training` makes the file; a JVM that finds none, or one that does not
fit its class path, starts without. Source: JEP 350, Dynamic CDS Archives.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from deeplambda.config import Settings
from deeplambda.jvm.ivy import java_program, pyspark_jars
from deeplambda.jvm.jars import spark_jars

# Otherwise warnings about a file that does not match go to standard output.
_QUIET = ("-Xlog:disable", "-Xlog:all=error:stderr")


def java_options(settings: Settings) -> tuple[str, ...]:
    """Options for the JVM of a local Spark session: the CDS file, where there is one, and the quick compiler.

    The quick compiler makes slower code, in less time: on few cores, in jobs of seconds to minutes, it wins.
    """
    file = cds_file(settings)
    mapped = (f"-XX:SharedArchiveFile={file}", *_QUIET) if file.exists() else ()
    return (
        "-Xms64m",  # a sixty-fourth of the machine's memory, the default, is more than an idle part needs
        "-XX:+UseSerialGC",
        # The heap follows what is alive in it: by default it grows until two fifths are free.
        "-XX:MinHeapFreeRatio=10",
        "-XX:MaxHeapFreeRatio=30",
        "-XX:TieredStopAtLevel=1",
        # The quick compiler's default, 48 MB, is full after minutes of queries: a sixth of the time then goes in
        # sweeping, and code that was thrown away is compiled again.
        "-XX:ReservedCodeCacheSize=240m",
        "-XX:-UsePerfData",
        *mapped,
    )


def as_setting(options: Iterable[str]) -> str:
    """Options as Spark's settings take them: it divides the text at spaces, which a path may have."""
    return " ".join(f'"{option}"' for option in options)


def cds_file(settings: Settings) -> Path:
    """Where the CDS file for these jars and this Java lies, or would."""
    java = Path(java_program()).resolve()
    fingerprint = hashlib.sha256(f"{java} {java.stat().st_mtime_ns}".encode())
    for jar in (*sorted(pyspark_jars().glob("*.jar")), *spark_jars(settings)):
        fingerprint.update(f"{jar} {jar.stat().st_mtime_ns}".encode())  # the JVM compares the same
    return settings.cache_dir / "cds" / f"spark-{fingerprint.hexdigest()[:16]}.jsa"
