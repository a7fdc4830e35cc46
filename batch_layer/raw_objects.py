"""Raw objects: what lies under `<application>/raw/` on S3, and which of it an application's sources mean."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.errors import BadInput
from deeplambda.sources import matched


class RawObject(NamedTuple):
    """What is held of each of millions. stored_s: by S3's clock, since 1970. tag: S3's, which is another for other
    content."""

    stored_s: float
    tag: str


class Files(NamedTuple):
    """Names of a folder's files, sorted: those that an application's sources mean, and the others."""

    meant: list[str]
    others: list[str]


def raw_key(application: str, name: str) -> str:
    """Where a raw object is kept."""
    return f"{application}/raw/{name}"


def files_of(application: Application, folder: Path) -> Files:
    """The files in a folder. Raises: BadInput where a path of the sources means none."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    remedy = "give the folder that holds all of them; a source whose path is a glob takes files that are put later"
    meant = _named(application, names, f"{folder} has no", remedy)
    return Files(sorted(meant), sorted(names - meant))


def objects_of(application: Application, store: ObjectStore) -> dict[str, RawObject]:
    """The objects on S3 that the application's sources mean, by name.

    Raises: BadInput where a path means none.
    """
    root = raw_key(application.name, "")
    stored = {
        found.key.removeprefix(root): RawObject(found.modified.timestamp(), found.tag)
        for found in store.each(root)
        if not found.key.endswith("/")
    }
    named = _named(
        application,
        stored,
        f"s3://{store.bucket}/{root} has no raw object",
        f"put it there: 'deeplambda data put {application.name} FOLDER'",
    )
    for name in stored.keys() - named:
        del stored[name]
    return stored


def _named(application: Application, names: Collection[str], lack: str, remedy: str) -> set[str]:
    meant = set[str]()
    for path in (path for source in application.sources for path in source.paths):
        of_path = matched(path, names)
        if not of_path:
            raise BadInput(f"{lack} {path}", remedy)
        meant.update(of_path)
    return meant
