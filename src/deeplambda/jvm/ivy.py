"""Fetch artefacts from Maven repositories through Apache Ivy, a jar inside pyspark.

Ivy keeps what it has downloaded in its own cache folder, so a run that was interrupted goes on with the next artefact.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

from deeplambda.errors import ConfigurationError, NotReady

# File names with full coordinates; an artefact's own file name lacks the organisation.
_PATTERN = "[organisation]=[module]=[revision].[ext]"
_DOWNLOADED = re.compile(r"\[SUCCESSFUL \] (\S+?)#(\S+?);(\S+?)!")


class Coordinate(NamedTuple):
    """`organisation:name:revision`, as Maven writes it."""

    organisation: str
    name: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> "Coordinate":
        return cls(*text.split(":"))

    def __str__(self) -> str:
        return ":".join(self)

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.revision}.jar"


def pyspark_jars() -> Path:
    """The folder of jars that pyspark ships. Raises: ConfigurationError."""
    spec = find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise ConfigurationError("pyspark is not installed", "run: pip install 'deeplambda[spark]'")
    return Path(spec.origin).parent / "jars"


def java_program() -> str:
    """The `java` to run: `$JAVA_HOME/bin/java`, else the one on PATH. Raises: ConfigurationError."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if found is None:
        raise ConfigurationError("no Java found", "install a Java runtime of version 17 or later, or set JAVA_HOME")
    return found


def retrieve(
    folder: Path,
    jars: Iterable[Coordinate],
    trees: Iterable[Coordinate] = (),
    exclude: Iterable[str] = (),
    on_downloaded: Callable[[Coordinate], None] = lambda _: None,
    lock: int | None = None,
) -> dict[Coordinate, Path]:
    """Bring `jars` alone and `trees` with their dependencies into `folder`; returns where each lies.

    exclude: what the trees leave out, as `organisation` or `organisation:name`. on_downloaded: called as each artefact
    arrives from the network. lock: a lock file's descriptor, which Ivy inherits, so that no other Ivy starts in this
    folder while one whose parent was killed still runs. Raises: NotReady when the network or the repository fails.
    """
    trees = list(trees)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.xml").write_text(_settings(folder / "cache", read_poms=bool(trees)))
    (folder / "ivy.xml").write_text(_module(jars, trees, exclude))
    arrived = folder / "arrived"
    shutil.rmtree(arrived, ignore_errors=True)
    ivy = next(pyspark_jars().glob("ivy-*.jar"))
    command: list[str | Path] = [
        java_program(),
        "-Xmx256m",
        "-XX:TieredStopAtLevel=1",
        "-XX:-UsePerfData",
        "-jar",
        ivy,
        "-settings",
        folder / "settings.xml",
    ]
    command += ["-ivy", folder / "ivy.xml", "-retrieve", f"{arrived}/{_PATTERN}"]
    lines: list[str] = []
    shared = () if lock is None else (lock,)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, pass_fds=shared
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if found := _DOWNLOADED.search(line):
                on_downloaded(Coordinate(*found.groups()))
    if process.returncode != 0:
        problems = [line.strip() for line in lines if "not found" in line or "WARN" in line or "ERROR" in line]
        raise NotReady(
            f"fetching Java components failed: {' '.join(problems[-3:]) or lines[-1:]}",
            "check the network (behind a proxy: JAVA_TOOL_OPTIONS='-Dhttps.proxyHost=HOST -Dhttps.proxyPort=PORT'), "
            "then run the command again: what has arrived is kept",
        )
    return {Coordinate(*path.stem.split("=")): path for path in arrived.glob("*.jar")}


def _settings(cache: Path, read_poms: bool) -> str:
    # SHA-256 is checked by the caller; Ivy's own SHA-1 check would double the number of requests.
    return f"""<ivysettings>
  <property name="ivy.checksums" value=""/>
  <settings defaultResolver="central"/>
  <caches defaultCacheDir={quoteattr(str(cache))}/>
  <resolvers><ibiblio name="central" m2compatible="true" usepoms="{str(read_poms).lower()}"/></resolvers>
</ivysettings>
"""


def _module(jars: Iterable[Coordinate], trees: Sequence[Coordinate], exclude: Iterable[str]) -> str:
    jar_itself = "master" if trees else "*"  # without POMs an artefact has no configuration named master
    lines = [
        f'    <dependency org="{jar.organisation}" name="{jar.name}" rev="{jar.revision}" '
        f'transitive="false" force="true" conf="default->{jar_itself}"/>'
        for jar in jars
    ]
    lines += [
        f'    <dependency org="{tree.organisation}" name="{tree.name}" rev="{tree.revision}" '
        'conf="default->runtime(*),master(*)"/>'
        for tree in trees
    ]
    for excluded in exclude:
        organisation, _, name = excluded.partition(":")
        lines.append(
            f'    <exclude org="{organisation}" module="{name or "*"}" type="*" ext="*" conf="*" matcher="exact"/>'
        )
    body = "\n".join(lines)
    return f"""<ivy-module version="2.0">
  <info organisation="deeplambda" module="components"/>
  <configurations><conf name="default"/></configurations>
  <dependencies>
{body}
  </dependencies>
</ivy-module>
"""
