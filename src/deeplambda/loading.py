"""Finding an application, versioning it by its code, and shipping it to other processes.

An application's folder is packed into one zip whose top-level package is named after the application and the
SHA-256 of its sources. Driver, Spark workers and services import that zip, so all run the same bytes, and two
versions can live in one worker.
"""

import hashlib
import importlib
import importlib.util
import inspect
import io
import os
import re
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from deeplambda.application import Application, name_clash, payload_fields, payload_schema
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, UnknownApplication
from deeplambda.metrics import check_metrics

ENTRY_POINT_GROUP = "deeplambda.applications"
APPLICATION_NAME = re.compile("[a-z][a-z0-9_]{0,39}")  # it becomes part of topics, tables and S3 keys
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # zips of equal sources are equal bytes


@lru_cache(maxsize=16)
def _instance(package: str) -> Application:
    module = importlib.import_module(f"{package}.application")
    written_here = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, Application) and item.__module__ == module.__name__
    ]
    if len(written_here) != 1:
        raise ConfigurationError(
            f"application.py defines {len(written_here)} applications"
            + "".join(f", {each.__name__}" for each in written_here),
            "define exactly one subclass of Application",
        )
    application: Application = written_here[0]()
    payload_schema(application.event)  # a field without a column type should fail here, not in a worker
    return application


@dataclass(frozen=True, kw_only=True)
class PackedApplication:
    """An application as other processes get it: small, picklable, loaded on demand.

    code_version: first 12 hex digits of the SHA-256 over the sources. zip_file: what Spark ships.
    """

    name: str
    code_version: str
    zip_file: Path

    @property
    def package(self) -> str:
        """Name under which the zip's sources are imported."""
        return f"deeplambda_application_{self.name}_{self.code_version}"

    def load(self) -> Application:
        """The application itself; in a Spark worker the zip is on the path already. Raises: ConfigurationError."""
        if self.zip_file.exists() and str(self.zip_file) not in sys.path:
            sys.path.insert(0, str(self.zip_file))
        try:
            return _instance(self.package)
        except ImportError as exc:
            raise self._not_imported(exc) from exc
        except SystemExit as exc:  # it would end the thread that loads, or the whole process, without a word
            raise ConfigurationError(
                f"application.py of {self.name} exits when it is imported", "move what it runs into a function"
            ) from exc

    def _not_imported(self, exc: ImportError) -> ConfigurationError:
        what = str(exc).partition(" (")[0]  # without the file's path
        if (exc.name or "").partition(".")[0] == "deeplambda":
            return ConfigurationError(
                f"application.py of {self.name} was written for another version of the platform: {what}",
                "serve it with that version, or import what docs/applications.md, 'Imports', lists and train again",
            )
        return ConfigurationError(
            f"application.py of {self.name} imports what is not installed here: {what}",
            "install it wherever the application runs: docs/applications.md, 'Libraries'",
        )


def pack_application(name: str, settings: Settings) -> PackedApplication:
    """Find `name` (an entry point, a folder under `applications_dir`, or a path) and pack all files of its folder.

    Raises: UnknownApplication, ConfigurationError.
    """
    folder = find_folder(name, settings)
    files = _files(folder)
    code_version = _code_version(files)
    packed = PackedApplication(
        name=folder.name, code_version=code_version, zip_file=_zip_path(settings, folder.name, code_version)
    )
    content = _zipped(packed, {"__init__.py": b""} | files)
    if not packed.zip_file.exists() or packed.zip_file.read_bytes() != content:
        _write(packed.zip_file, content)
    if packed.load().name != packed.name or not APPLICATION_NAME.fullmatch(packed.name):
        raise ConfigurationError(
            f"the application in {folder} is named {packed.load().name!r}",
            "give folder and application one name: lower-case letters, digits and underscores, 40 at most",
        )
    check_metrics(packed.load())  # of what is deployed: a version that was published long ago serves as it is
    if clash := name_clash(event := packed.load().event):
        raise ConfigurationError(
            f"{event.__name__}.{clash[0]}: a field may not be called as {clash[1]}, in upper or lower case",
            "give it another name; a label is no part of an event",
        )
    fields = payload_fields(event)
    if unknown := [name for name in packed.load().slices if name not in fields]:
        raise ConfigurationError(
            f"the slice {unknown[0]!r} of {packed.name} is no field of its event", f"name one of {', '.join(fields)}"
        )
    return packed


def deployed_code_version(name: str, settings: Settings) -> str:
    """The version of the code of `name`, none of which is loaded. Raises: UnknownApplication."""
    return _code_version(_files(find_folder(name, settings)))


def code_version_of_0_1_0(name: str, settings: Settings) -> str:
    """What 0.1.0 called that version: it packed Python files alone. Raises: UnknownApplication."""
    folder = find_folder(name, settings)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.py"))}
    return _code_version({relative: content for relative, content in files.items() if "__pycache__" not in relative})


@cache
def platform_code(*packages: str) -> str:
    """Names the code of some of the platform's packages, whatever its version is called; a process keeps what it finds
    first.
    """
    digest = hashlib.sha256()
    for package in packages:
        folder = Path(str(importlib.import_module(package).__file__)).parent
        digest.update(f"{package}\0{_code_version(_files(folder))}\0".encode())
    return digest.hexdigest()[:12]


def _files(folder: Path) -> dict[str, bytes]:
    within = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        relative.as_posix(): path.read_bytes()
        for relative, path in within.items()
        if not any(piece == "__pycache__" or piece.startswith(".") for piece in relative.parts)
    }


def _code_version(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for relative, content in files.items():
        digest.update(f"{relative}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def unpack_application(
    name: str, code_version: str, sha256: str, settings: Settings, fetch: Callable[[], bytes]
) -> PackedApplication:
    """The application whose zip `fetch` gets, which is called only when this machine has no zip of that hash.

    Raises: ConfigurationError where no folder of this user's can take it.
    """
    place = _zip_path(settings, name, code_version)
    elsewhere = Path(tempfile.gettempdir(), f"deeplambda-applications-{os.geteuid()}", place.name)
    for known in (place, elsewhere):
        trusted = known == place or _is_private(known.parent)
        if trusted and known.exists() and hashlib.sha256(known.read_bytes()).hexdigest() == sha256:
            return PackedApplication(name=name, code_version=code_version, zip_file=known)
    content = fetch()
    try:
        _write(place, content)
    except OSError:  # the data folder is another's
        place = elsewhere
        with suppress(FileExistsError):
            place.parent.mkdir(mode=0o700)
        if not _is_private(place.parent):
            raise ConfigurationError(
                f"{place.parent} is not a folder that this user alone can write", "remove it, or set TMPDIR"
            ) from None
        _write(place, content)
    return PackedApplication(name=name, code_version=code_version, zip_file=place)


def _is_private(folder: Path) -> bool:
    """Whether nobody else can put code there; anybody can take a name in the machine's folder of temporary files."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _zip_path(settings: Settings, name: str, code_version: str) -> Path:
    return settings.data_dir / "applications" / f"{name}-{code_version}.zip"


def _zipped(packed: PackedApplication, files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for relative, content in files.items():
            zipped.writestr(zipfile.ZipInfo(f"{packed.package}/{relative}", _ZIP_TIME), content)
    return buffer.getvalue()


def _write(place: Path, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(f".{os.getpid()}.{id(content)}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a crash of the machine may leave the new name with an empty file
    partial.replace(place)


def find_folder(name: str, settings: Settings) -> Path:
    """The folder of an application's sources. Raises: UnknownApplication."""
    candidates = [settings.applications_dir / name, Path(name)]
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        spec = importlib.util.find_spec(point.module)
        if spec and spec.origin:
            candidates.insert(0, Path(spec.origin).parent)
    for folder in candidates:
        if (folder / "application.py").is_file():
            return folder.resolve()
    raise UnknownApplication(
        f"no application {name!r}: no entry point in group {ENTRY_POINT_GROUP!r}, and no application.py in "
        + " or ".join(str(folder.resolve()) for folder in candidates),
        "give a path, or set DEEPLAMBDA_APPLICATIONS_DIR",
    )
