"""Raw objects: what lies under `<application>/raw/` on S3, and which of it an application's sources mean."""

from array import array
from collections.abc import Collection, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.errors import BadInput, CorruptObject
from deeplambda.sources import matched, names_below


class RawObjects(NamedTuple):
    """Objects on S3, of which there may be millions. tags: S3's, by name; another for other content. stored_s: when, by
    S3's clock, since 1970, in the same order."""

    tags: dict[str, str]
    stored_s: NDArray[np.float64]

    def without(self, names: Set[str]) -> "RawObjects":
        """The objects but these."""
        if not names:
            return self
        left = [name not in names for name in self.tags]
        return RawObjects({name: tag for name, tag in self.tags.items() if name not in names}, self.stored_s[left])


class Files(NamedTuple):
    """Names of a folder's files, sorted: those that an application's sources mean, and the others."""

    meant: list[str]
    others: list[str]


def raw_key(application: str, name: str) -> str:
    """Where a raw object is kept."""
    return f"{application}/raw/{name}"


def unreadable(application: str, name: str, why: object) -> CorruptObject:
    """What to raise of a raw object that cannot be read."""
    return CorruptObject(
        f"raw object {name} of {application} cannot be read: {why}",
        "upload the original again with 'deeplambda data put', then ingest",
    )


def files_of(application: Application, folder: Path) -> Files:
    """The files in a folder. Raises: BadInput where a path of the sources means none."""
    names = set(names_below(folder))
    remedy = "give the folder that holds all of them; a source whose path is a glob takes files that are put later"
    meant = _named(application, names, f"{folder} has no", remedy)
    return Files(sorted(meant), sorted(names - meant))


def objects_of(application: Application, store: ObjectStore) -> RawObjects:
    """The objects on S3 that the application's sources mean.

    Raises: BadInput where a path means none.
    """
    root = raw_key(application.name, "")
    tags, stored_s = dict[str, str](), array("d")
    for found in store.each(root):
        if not found.key.endswith("/"):
            tags[found.key.removeprefix(root)] = found.tag
            stored_s.append(found.modified.timestamp())
    named = _named(
        application,
        tags,
        f"s3://{store.bucket}/{root} has no raw object",
        f"put it there: 'deeplambda data put {application.name} FOLDER'",
    )
    return RawObjects(tags, np.asarray(stored_s)).without(tags.keys() - named)


def _named(application: Application, names: Collection[str], lack: str, remedy: str) -> set[str]:
    meant = set[str]()
    for path in (path for source in application.sources for path in source.paths):
        of_path = matched(path, names)
        if not of_path:
            raise BadInput(f"{lack} {path}", remedy)
        meant.update(of_path)
    return meant
