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
import re
import sys
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from deeplambda.application import Application, payload_schema
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, UnknownApplication

ENTRY_POINT_GROUP = "deeplambda.applications"
_NAME = re.compile("[a-z][a-z0-9_]{0,39}")  # it becomes part of topics, tables and S3 keys
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
            f"{module.__name__} defines {len(written_here)} applications", "define exactly one subclass of Application"
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
        """The application itself; in a Spark worker the zip is on the path already."""
        if self.zip_file.exists() and str(self.zip_file) not in sys.path:
            sys.path.insert(0, str(self.zip_file))
        return _instance(self.package)


def pack_application(name: str, settings: Settings) -> PackedApplication:
    """Find `name` (an entry point, a folder under `applications_dir`, or a path) and pack it.

    Raises: UnknownApplication, ConfigurationError.
    """
    folder = _find(name, settings)
    sources = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.py"))
        if "__pycache__" not in path.parts
    }
    digest = hashlib.sha256()
    for relative, content in sources.items():
        digest.update(f"{relative}\0{len(content)}\0".encode() + content)
    packed = PackedApplication(
        name=folder.name,
        code_version=digest.hexdigest()[:12],
        zip_file=settings.data_dir / "applications" / f"{folder.name}-{digest.hexdigest()[:12]}.zip",
    )
    if not packed.zip_file.exists():
        _write_zip(packed, {"__init__.py": b""} | sources)
    if packed.load().name != packed.name or not _NAME.fullmatch(packed.name):
        raise ConfigurationError(
            f"the application in {folder} is named {packed.load().name!r}",
            "give folder and application one name: lower-case letters, digits and underscores, 40 at most",
        )
    return packed


def _write_zip(packed: PackedApplication, sources: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for relative, content in sources.items():
            zipped.writestr(zipfile.ZipInfo(f"{packed.package}/{relative}", _ZIP_TIME), content)
    packed.zip_file.parent.mkdir(parents=True, exist_ok=True)
    partial = packed.zip_file.with_suffix(f".{id(buffer)}.partial")
    partial.write_bytes(buffer.getvalue())
    partial.replace(packed.zip_file)


def _find(name: str, settings: Settings) -> Path:
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
