"""The platform's Java sources, compiled by Janino, one of pyspark's jars, so that a Java runtime is enough.

Janino knows no lambdas and erases generics, hence the plain style of the sources.
"""

import hashlib
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.jvm.ivy import java_program, pyspark_jars

_COMPILER = "org.codehaus.commons.compiler.samples.CompilerDemo"


def compiled_jar(sources: Path, settings: Settings, libraries: Sequence[Path] = ()) -> Path:
    """The same classes as a jar: a class path with a folder in it would not fit the CDS file."""
    classes = compiled_classes(sources, settings, libraries)
    jar = classes.with_suffix(".jar")
    if not jar.exists():
        unfinished = jar.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(unfinished, "w") as packed:
            for file in sorted(classes.rglob("*.class")):
                packed.write(file, file.relative_to(classes))
        unfinished.rename(jar)
    return jar


def compiled_classes(sources: Path, settings: Settings, libraries: Sequence[Path] = ()) -> Path:
    """A folder with the classes of all sources below `sources`, compiled when these or pyspark change.

    It lies beside the components, for every clone; with the data where nobody may write there, as in a container.
    libraries: jars that they need beside pyspark's. Raises: ConfigurationError when the sources do not compile.
    """
    files, jars = sorted(sources.rglob("*.java")), [*sorted(pyspark_jars().glob("*.jar")), *libraries]
    digest = hashlib.sha256("\n".join(jar.name for jar in jars).encode())
    for file in files:
        digest.update(file.read_bytes())
    shared = os.access(settings.cache_dir, os.W_OK)
    folder = (settings.cache_dir if shared else settings.data_dir) / "classes" / digest.hexdigest()[:12]
    if not folder.exists():
        _compile(files, jars, folder)
    return folder


def _compile(files: list[Path], jars: list[Path], folder: Path) -> None:
    class_path = ":".join(map(str, jars))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unfinished = Path(scratch, "classes")
        unfinished.mkdir()
        command = [java_program(), "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-cp", class_path, _COMPILER]
        command += ["-g", "-d", str(unfinished), "-classpath", class_path, *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = (done.stderr + done.stdout).splitlines()
        complaint = "\n".join(line for line in told if not line.startswith("Picked up ")).strip()  # _JAVA_OPTIONS
        if done.returncode or complaint:  # this compiler reports an error and exits 0
            raise ConfigurationError(
                f"the Java in {files[0].parent} did not compile: {complaint[-500:]}",
                "install the pinned pyspark, see constraints.txt",
            )
        if not folder.exists():  # another process may have made the same classes meanwhile
            unfinished.rename(folder)
