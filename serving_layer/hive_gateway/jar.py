"""The gateway's Java as a jar: a class path with a folder in it would not fit the CDS file."""

import os
import zipfile
from pathlib import Path

from deeplambda.config import Settings
from deeplambda.jvm.java_sources import compiled_classes

SOURCES = Path(__file__).with_name("java")


def gateway_jar(settings: Settings) -> Path:
    """The jar, made anew when the sources have changed. Raises: ConfigurationError when they do not compile."""
    classes = compiled_classes(SOURCES, settings.data_dir / "gateway" / "classes")
    jar = classes.with_suffix(".jar")
    if not jar.exists():
        unfinished = jar.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(unfinished, "w") as packed:
            for file in sorted(classes.rglob("*.class")):
                packed.write(file, file.relative_to(classes))
        unfinished.rename(jar)
    return jar
