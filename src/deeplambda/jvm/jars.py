"""The JVM components in a cache that every clone shares: fetched once, each jar checked by SHA-256.

A jar enters `<cache_dir>/jars` by a rename after its hash was checked, so every jar there is complete. Fetching holds
a file lock: two clones that start together fetch once. An interrupted fetch is taken up again at the jar it was at.
"""

import shutil
import stat
import threading
import zipfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_any,
    stop_when_event_set,
    wait_exponential,
)

from deeplambda.config import Settings
from deeplambda.errors import CorruptObject, NotReady
from deeplambda.jvm.files import only_one
from deeplambda.jvm.ivy import Coordinate, retrieve
from deeplambda.jvm.lock import LockedJar, read_lock, sha256_of

_ATTEMPTS = 4


def spark_jars(settings: Settings) -> list[Path]:
    """What a Spark session needs beside pyspark's own jars: the Kafka source, Iceberg, S3A and Connector/J."""
    return component_jars(settings, "spark")


def component_jars(settings: Settings, component: str) -> list[Path]:
    """The jars of one component (spark, kafka, s3, mysql), fetched when missing.

    Raises: NotReady when the network fails, CorruptObject when what arrives is not what the lock names.
    """
    locked = [jar for jar in read_lock() if jar.component == component]
    if missing_jars(settings, locked):
        fetch(settings, locked)
    return [_place(settings, jar) for jar in locked]


def fetch_components(settings: Settings, components: Collection[str]) -> None:
    """Have everything that `components` need in the cache, unpacked."""
    locked = [jar for jar in read_lock() if jar.component in components]
    if missing_jars(settings, locked):
        fetch(settings, locked)
    if "mysql" in components:
        native_mysql(settings)


def missing_jars(settings: Settings, locked: list[LockedJar]) -> list[LockedJar]:
    """Those that are not in the cache at their full size."""
    return [jar for jar in locked if _size_of(_place(settings, jar)) != jar.size_bytes]


def damaged_jars(settings: Settings) -> list[Path]:
    """Cached jars whose bytes are no longer those of the lock (a failing disk, an edit)."""
    places = ((_place(settings, jar), jar) for jar in read_lock())
    return [place for place, jar in places if place.exists() and sha256_of(place) != jar.sha256]


def fetch(settings: Settings, locked: list[LockedJar]) -> None:
    """Bring the missing ones of `locked` into the cache, the components side by side, showing progress."""
    with only_one(settings.cache_dir / "fetch.lock") as lock:
        wanted: dict[str, dict[Coordinate, LockedJar]] = {}
        missing = {jar.coordinate: jar for jar in missing_jars(settings, locked)}  # two components may share a jar
        for jar in missing.values():
            wanted.setdefault(jar.component, {})[jar.coordinate] = jar
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        given_up = threading.Event()
        with Progress(*columns, console=Console(stderr=True)) as progress, ThreadPoolExecutor() as pool:
            fetched = [
                pool.submit(_fetch_component, settings, progress, wanted[name], lock, given_up) for name in wanted
            ]
            try:
                for component in fetched:
                    component.result()
            except BaseException:  # above all Ctrl-C, which ends the Ivy processes: they must not be retried
                given_up.set()
                raise


def _fetch_component(
    settings: Settings, progress: Progress, missing: dict[Coordinate, LockedJar], lock: int, given_up: threading.Event
) -> None:
    (component,) = {jar.component for jar in missing.values()}
    total_bytes = sum(jar.size_bytes for jar in missing.values())
    task = progress.add_task(f"Java components of {component}", total=total_bytes)
    incoming = settings.cache_dir / "incoming" / component
    attempts = Retrying(
        retry=retry_if_exception_type(NotReady),
        stop=stop_any(stop_after_attempt(_ATTEMPTS), stop_when_event_set(given_up)),
        sleep=sleep_using_event(given_up),
        wait=wait_exponential(max=15),
        reraise=True,
    )
    arrived = attempts(
        retrieve,
        incoming,
        jars=list(missing),
        on_downloaded=lambda coordinate: progress.update(task, advance=missing[coordinate].size_bytes),
        lock=lock,
    )
    progress.update(task, completed=total_bytes)
    for coordinate, path in arrived.items():
        accept(missing[coordinate], path, _place(settings, missing[coordinate]))
    shutil.rmtree(incoming)


def native_mysql(settings: Settings) -> Path:
    """The folder of MariaDB's programs, unpacked into the cache once."""
    (jar,) = component_jars(settings, "mysql")
    home = settings.cache_dir / jar.stem
    if home.is_dir():
        return home
    with only_one(settings.cache_dir / "fetch.lock"):
        if home.is_dir():
            return home
        unpacked = settings.cache_dir / "incoming" / jar.stem
        shutil.rmtree(unpacked, ignore_errors=True)
        with zipfile.ZipFile(jar) as file:
            file.extractall(unpacked)
        (base,) = (path.parent.parent for path in unpacked.rglob("bin/mariadbd"))
        for program in (*base.glob("bin/*"), *base.glob("scripts/*")):
            program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        base.rename(home)
        shutil.rmtree(unpacked, ignore_errors=True)
    return home


def accept(jar: LockedJar, arrived: Path, place: Path) -> None:
    """Move what `arrived` to its place in the cache if it is the jar of the lock. Raises: CorruptObject."""
    found = sha256_of(arrived)
    if found != jar.sha256:
        shutil.rmtree(arrived.parents[1])  # Ivy's own cache too, or it would hand out the same bytes again
        raise CorruptObject(
            f"{jar.coordinate} was refused: its SHA-256 is {found[:12]}… and the lock names {jar.sha256[:12]}…",
            "run the command again; if it happens again, a proxy or mirror between here and the repository alters it",
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    arrived.replace(place)


def _place(settings: Settings, jar: LockedJar) -> Path:
    return settings.cache_dir / "jars" / jar.file_name


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
