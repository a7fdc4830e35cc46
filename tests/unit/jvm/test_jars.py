import hashlib
import tomllib
from pathlib import Path

import pytest

from deeplambda.config import Settings
from deeplambda.errors import CorruptObject
from deeplambda.jvm.ivy import Coordinate
from deeplambda.jvm.jars import accept, damaged_jars, missing_jars
from deeplambda.jvm.lock import COMPONENTS_FILE, LockedJar, read_lock

CONTENT = b"PK of a jar"


@pytest.fixture
def jar() -> LockedJar:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return LockedJar("kafka", Coordinate("org.example", "thing", "1.0"), sha256, len(CONTENT))


def arrive(tmp_path: Path, content: bytes) -> Path:
    arrived = tmp_path / "incoming" / "arrived" / "thing.jar"
    arrived.parent.mkdir(parents=True)
    arrived.write_bytes(content)
    return arrived


def test_a_jar_with_the_right_hash_enters_the_cache(tmp_path: Path, jar: LockedJar) -> None:
    place = tmp_path / "jars" / jar.file_name
    accept(jar, arrive(tmp_path, CONTENT), place)
    assert place.read_bytes() == CONTENT


def test_a_jar_with_another_hash_is_refused_and_not_kept(tmp_path: Path, jar: LockedJar) -> None:
    arrived = arrive(tmp_path, b"PK of another")
    with pytest.raises(CorruptObject, match=r"org\.example:thing:1\.0 was refused"):
        accept(jar, arrived, tmp_path / "jars" / jar.file_name)
    assert not arrived.exists()
    assert not (tmp_path / "jars").exists()


def test_a_truncated_jar_counts_as_missing(settings: Settings, jar: LockedJar) -> None:
    place = settings.cache_dir / "jars" / jar.file_name
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT[:-1])
    assert missing_jars(settings, [jar]) == [jar]
    place.write_bytes(CONTENT)
    assert missing_jars(settings, [jar]) == []


def test_a_cached_jar_whose_bytes_changed_is_named(settings: Settings) -> None:
    changed = settings.cache_dir / "jars" / read_lock()[0].file_name
    changed.parent.mkdir(parents=True)
    changed.write_bytes(b"not what it was")
    assert damaged_jars(settings) == [changed]


def test_no_two_jars_of_the_lock_share_a_file_name() -> None:
    by_name: dict[str, set[str]] = {}
    for jar in read_lock():
        by_name.setdefault(jar.file_name, set()).add(jar.sha256)
    assert {name for name, hashes in by_name.items() if len(hashes) > 1} == set()


def test_the_lock_holds_all_that_the_components_name() -> None:
    locked = {(jar.component, str(jar.coordinate)) for jar in read_lock()}
    for component, wanted in tomllib.loads(COMPONENTS_FILE.read_text()).items():
        for name in (*wanted.get("jars", ()), *wanted.get("trees", ())):
            assert (component, name) in locked
