"""The gateway's Java, compiled by Janino, a compiler that lies among pyspark's jars: a Java runtime is enough.

Janino knows no lambdas and erases generics, hence the plain style of the sources.
"""

import hashlib
import subprocess
import tempfile
from pathlib import Path

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.stack.ivy import java_program, pyspark_jars

SOURCES = Path(__file__).with_name("java")
_COMPILER = "org.codehaus.commons.compiler.samples.CompilerDemo"


def compiled_classes(settings: Settings) -> Path:
    """The folder of compiled classes, made when the sources or pyspark's jars have changed.

    Raises: ConfigurationError when the sources do not compile.
    """
    sources, jars = sorted(SOURCES.rglob("*.java")), sorted(pyspark_jars().glob("*.jar"))
    digest = hashlib.sha256("\n".join(jar.name for jar in jars).encode())
    for source in sources:
        digest.update(source.read_bytes())
    folder = settings.data_dir / "gateway" / "classes" / digest.hexdigest()[:12]
    if not folder.exists():
        _compile(sources, jars, folder)
    return folder


def _compile(sources: list[Path], jars: list[Path], folder: Path) -> None:
    class_path = ":".join(map(str, jars))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unfinished = Path(scratch, "classes")
        unfinished.mkdir()
        command = [java_program(), "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-cp", class_path, _COMPILER]
        command += ["-g", "-d", str(unfinished), "-classpath", class_path, *map(str, sources)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        complaint = (done.stderr + done.stdout).strip()
        if done.returncode or complaint:  # this compiler reports an error and exits 0
            raise ConfigurationError(
                f"the gateway's Java did not compile: {complaint[-500:]}",
                "install the pinned pyspark, see constraints.txt",
            )
        if not folder.exists():  # another gateway may have made the same classes meanwhile
            unfinished.rename(folder)
