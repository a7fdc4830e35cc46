"""What this machine lacks for the local stack, and the remedy of each."""

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
from dotenv import dotenv_values

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.jvm.ivy import java_program, pyspark_jars
from deeplambda.jvm.jars import damaged_jars, missing_jars
from deeplambda.jvm.lock import read_lock
from deeplambda.stack.findings import GIB, NOMINAL, Finding, of_no_setting
from deeplambda.stack.local.parts import PARTS
from deeplambda.stack.local.ports import holder_of, is_free
from deeplambda.stack.local.supervisor import Supervisor, check_socket_path

MEMORY_GIB, FREE_GIB = 8, 6
DISK_GIB = 10
JAVA_VERSION = 17
PYTHON_VERSION = (3, 11)
_OPEN_FILES = 4096


def examine(settings: Settings) -> list[Finding]:
    """Look at everything that the stack needs; changes nothing."""
    checks: tuple[Callable[[Settings], Finding], ...] = (
        _python,
        _java,
        _processor,
        _spark,
        _memory,
        _disk,
        _data_dir,
        _socket_path,
        _open_files,
        _jar_cache,
        _ports,
    )
    return [*settings_file(settings.data_dir / "stack.env"), *(check(settings) for check in checks)]


def settings_file(file: Path) -> list[Finding]:
    """Each name in the file that is no setting; `Settings` passes over those."""
    known = [f"DEEPLAMBDA_{name}".upper() for name in Settings.model_fields]
    given = dotenv_values(file) if file.exists() else {}
    wrong = [
        Finding(f"Setting {name} in {file.name}", *unread) for name in given if (unread := of_no_setting(name, known))
    ]
    return wrong or [Finding("Settings", f"{len(given)} in {file}, each one known")]


def java_major_version(banner: str) -> int | None:
    """The major version in what `java -version` prints: 17 in `openjdk version "17.0.15"`, 8 in `"1.8.0_392"`."""
    found = re.search(r'version "(?:1\.)?(\d+)', banner)
    return int(found.group(1)) if found else None


def _python(_: Settings) -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", found, "" if sys.version_info >= PYTHON_VERSION else "install Python 3.11 or later")


def _java(_: Settings) -> Finding:
    remedy = f"install a Java runtime of version {JAVA_VERSION} or later, or set JAVA_HOME to one"
    try:
        program = java_program()
    except ConfigurationError:
        return Finding("Java", "not found", remedy)
    banner = subprocess.run([program, "-version"], capture_output=True, text=True, check=False).stderr
    version = java_major_version(banner)
    found = f"{version or 'unknown version'} at {program}"
    return Finding("Java", found, "" if version and version >= JAVA_VERSION else remedy)


def _processor(_: Settings) -> Finding:
    found = f"{platform.system()} {platform.machine()}"
    remedy = "MariaDB's programs are for Linux on x86_64: elsewhere use 'docker compose up'"
    return Finding("System", found, "" if found == "Linux x86_64" else remedy)


def _spark(_: Settings) -> Finding:
    try:
        return Finding("Spark", f"in {pyspark_jars().parent}")
    except ConfigurationError as exc:
        return Finding("Spark", exc.message, exc.remedy)


def _memory(settings: Settings) -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}"
    is_large = memory.total >= NOMINAL * MEMORY_GIB * GIB
    enough = (is_large and memory.available >= FREE_GIB * GIB) or Supervisor(settings).is_up()
    return Finding("Memory", found, "" if enough else f"free {FREE_GIB} GiB: stop other programs, or start fewer parts")


def _disk(settings: Settings) -> Finding:
    folder = _nearest_existing(settings.data_dir)
    free = shutil.disk_usage(folder).free
    remedy = f"free {DISK_GIB} GiB there, or set DEEPLAMBDA_DATA_DIR to a folder on a larger disk"
    return Finding("Disk", f"{free / GIB:.0f} GiB free at {folder}", "" if free >= DISK_GIB * GIB else remedy)


def _data_dir(settings: Settings) -> Finding:
    for folder in (settings.data_dir, settings.cache_dir):
        place = _nearest_existing(folder)
        if not _is_writable(place):
            return Finding("Folders", f"cannot write to {place}", "set DEEPLAMBDA_DATA_DIR and DEEPLAMBDA_CACHE_DIR")
    return Finding("Folders", f"data in {settings.data_dir}, cache in {settings.cache_dir}")


def _socket_path(settings: Settings) -> Finding:
    try:
        check_socket_path(Supervisor(settings).socket)
    except ConfigurationError as exc:
        return Finding("Socket path", exc.message, exc.remedy)
    return Finding("Socket path", "short enough")


def _open_files(_: Settings) -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = hard == resource.RLIM_INFINITY or hard >= _OPEN_FILES
    return Finding("Open files", f"limit {hard}", "" if enough else f"raise the limit: ulimit -Hn {_OPEN_FILES}")


def _jar_cache(settings: Settings) -> Finding:
    if damaged := damaged_jars(settings):
        names = ", ".join(path.name for path in damaged)
        return Finding("Jar cache", f"damaged: {names}", f"remove {settings.cache_dir / 'jars'}; 'up' fetches it anew")
    missing = missing_jars(settings, read_lock())
    size_mb = sum(jar.size_bytes for jar in missing) / 1e6
    found = f"{len(missing)} jars ({size_mb:.0f} MB) to fetch at the next 'up'" if missing else "complete, hashes right"
    return Finding("Jar cache", found)


def _ports(settings: Settings) -> Finding:
    running = Supervisor(settings).running()
    taken = [
        f"{port} ({part.name}) by {holder_of(port)}"
        for part in PARTS
        if part.name not in running and part.is_local(settings)
        for port in part.ports(settings)
        if not is_free(port)
    ]
    if taken:
        return Finding("Ports", f"taken: {', '.join(taken)}", "run 'deeplambda up --free-ports', or stop the holders")
    return Finding("Ports", "free, or held by this stack")


def _nearest_existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
