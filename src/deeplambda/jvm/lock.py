"""Which jars each component consists of: `jars.lock`, and how it is made from `components.toml`.

A line of the lock is `component organisation:name:revision sha256 size_bytes`. `python -m deeplambda.jvm.lock`
resolves the dependency trees anew and writes it; a normal `deeplambda up` only reads it.
"""

import hashlib
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

from deeplambda.jvm.ivy import Coordinate, retrieve

COMPONENTS_FILE = Path(__file__).with_name("components.toml")
LOCK_FILE = Path(__file__).with_name("jars.lock")


class LockedJar(NamedTuple):
    """One jar that a component needs, exactly."""

    component: str
    coordinate: Coordinate
    sha256: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        return self.coordinate.file_name


def read_lock() -> list[LockedJar]:
    """All locked jars, in class path order within a component."""
    rows = (line.split() for line in LOCK_FILE.read_text().splitlines() if line and not line.startswith("#"))
    return [LockedJar(component, Coordinate.parse(name), sha256, int(size)) for component, name, sha256, size in rows]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve(work_folder: Path) -> list[LockedJar]:
    """Resolve every component of `components.toml` over the network."""
    locked = []
    for component, wanted in tomllib.loads(COMPONENTS_FILE.read_text()).items():
        found = retrieve(
            work_folder / component,
            jars=[Coordinate.parse(text) for text in wanted.get("jars", ())],
            trees=[Coordinate.parse(text) for text in wanted.get("trees", ())],
            exclude=wanted.get("exclude", ()),
        )
        locked += [
            LockedJar(component, coordinate, sha256_of(path), path.stat().st_size)
            for coordinate, path in sorted(found.items())
        ]
    return locked


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="deeplambda-lock-") as work_folder:
        locked = resolve(Path(work_folder))
    lines = [f"{jar.component} {jar.coordinate} {jar.sha256} {jar.size_bytes}" for jar in locked]
    LOCK_FILE.write_text("# Made by `python -m deeplambda.jvm.lock` from components.toml.\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
