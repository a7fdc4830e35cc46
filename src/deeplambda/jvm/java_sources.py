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
from deeplambda.jvm.files import only_one
from deeplambda.jvm.ivy import java_program, pyspark_jars

_COMPILER = "org.codehaus.commons.compiler.samples.CompilerDemo"


def compiled_jar(sources: Path, settings: Settings, libraries: Sequence[Path] = ()) -> Path:
    """A jar with the classes of all sources below `sources`, compiled when these or pyspark change, or it is damaged.

    It lies beside the components, for every clone; with the data where nobody may write there, as in a container.
    libraries: jars that they need beside pyspark's. Raises: ConfigurationError when the sources do not compile.
    A jar, for a class path with a folder in it would not fit the CDS file.
    """
    files, jars = sorted(sources.rglob("*.java")), [*sorted(pyspark_jars().glob("*.jar")), *libraries]
    digest = hashlib.sha256("\n".join(jar.name for jar in jars).encode())
    for file in files:
        digest.update(file.read_bytes())
    shared = os.access(settings.cache_dir, os.W_OK)
    folder = (settings.cache_dir if shared else settings.data_dir) / "classes"
    jar = folder / f"{digest.hexdigest()[:12]}.jar"
    expected = {file.relative_to(sources).with_suffix(".class").as_posix() for file in files}
    if not _is_whole(jar, expected):
        with only_one(folder / "compile.lock"):
            if not _is_whole(jar, expected):  # another process may have made it meanwhile
                _compile(files, jars, jar, expected)
    return jar


def _is_whole(jar: Path, expected: set[str]) -> bool:
    if not zipfile.is_zipfile(jar):
        return False
    with zipfile.ZipFile(jar) as packed:
        return expected <= set(packed.namelist())


def _compile(files: list[Path], jars: list[Path], jar: Path, expected: set[str]) -> None:
    class_path = ":".join(map(str, jars))
    with tempfile.TemporaryDirectory(dir=jar.parent) as scratch:
        classes, unfinished = Path(scratch, "classes"), Path(scratch, "classes.jar")
        classes.mkdir()
        command = [java_program(), "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-cp", class_path, _COMPILER]
        command += ["-g", "-d", str(classes), "-classpath", class_path, *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        made = {file.relative_to(classes).as_posix(): file for file in sorted(classes.rglob("*.class"))}
        # Not by whether anything was said: notes and warnings of the JVM, and agents' banners, are no errors.
        if done.returncode or not expected <= made.keys():
            told = (done.stderr + done.stdout).strip()
            raise ConfigurationError(
                f"the Java in {files[0].parent} did not compile: {told[-500:]}",
                "install the pinned pyspark, see constraints.txt",
            )
        with zipfile.ZipFile(unfinished, "w") as packed:
            for name, file in made.items():
                packed.write(file, name)
        unfinished.replace(jar)
