"""Raw objects: what lies under `<application>/raw/` on S3, and which of it an application's sources mean."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.errors import BadInput
from deeplambda.sources import Images, Reader, matched, matches

_ASKED_AT_ONCE = 16


def raw_key(application: str, name: str) -> str:
    """Where a raw object is kept."""
    return f"{application}/raw/{name}"


def files_of(application: Application, folder: Path) -> list[str]:
    """Names of the files in a folder that the application's sources mean, sorted.

    Raises: BadInput where a path means none.
    """
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return _named(application, names, f"{folder} has no", "give the folder that holds all of them")


def objects_of(application: Application, store: ObjectStore) -> list[str]:
    """Names of the objects on S3 that the application's sources mean, sorted.

    Raises: BadInput where a path means none.
    """
    root = raw_key(application.name, "")
    names = (found.key.removeprefix(root) for found in store.list(root) if not found.key.endswith("/"))
    return _named(
        application,
        names,
        f"s3://{store.bucket}/{root} has no raw object",
        f"put it there: 'deeplambda data put {application.name} FOLDER'",
    )


def fingerprints(application: Application, names: Iterable[str], store: ObjectStore) -> dict[str, str]:
    """By object of tables and texts, the SHA-256 recorded when it was put, else S3's own tag after `etag:`.

    Raw sources and images are hashed when they are read.
    """
    read_in_parts = [
        source.path for source in application.sources if isinstance(source, Reader) and not isinstance(source, Images)
    ]
    asked = [name for name in names if any(matches(path, name) for path in read_in_parts)]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as executor:
        found = executor.map(lambda name: store.fingerprint(raw_key(application.name, name)), asked)
        return dict(zip(asked, found, strict=True))


def _named(application: Application, names: Iterable[str], lack: str, remedy: str) -> list[str]:
    there, meant = sorted(names), set[str]()
    for path in (path for source in application.sources for path in source.paths):
        of_path = matched(path, there)
        if not of_path:
            raise BadInput(f"{lack} {path}", remedy)
        meant.update(of_path)
    return sorted(meant)
