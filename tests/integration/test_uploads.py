"""Files of any size go to S3 in parts, and what was broken off is taken up."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pyspark.sql import SparkSession

from batch_layer import upkeep
from batch_layer.upkeep import maintain
from deeplambda.adapters.s3 import PART_BYTES, ObjectStore, sha256_of
from deeplambda.config import Settings

_PART = 5 * 2**20


class BrokenOff(Exception):
    """In the middle of an upload."""


def break_off(store: ObjectStore, key: str, path: Path, parts: int) -> None:
    """Begin an upload and end it after some parts."""
    done = 0

    def sent(size_bytes: int) -> None:
        nonlocal done
        done += 1
        if done == parts:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        store.put_file(key, path, sent, _PART)


@contextmanager
def parts_sent(store: ObjectStore) -> Iterator[list[int]]:
    """The numbers of the parts that go over the wire."""
    numbers: list[int] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        numbers.append(int(params["query_string"]["partNumber"]))

    store.client.meta.events.register("before-call.s3.UploadPart", note)
    yield numbers
    store.client.meta.events.unregister("before-call.s3.UploadPart", note)


@pytest.fixture
def store(stack: Settings) -> ObjectStore:
    return ObjectStore(stack)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(random.Random(7).randbytes(3 * _PART + 5))
    return path


def test_an_upload_that_was_broken_off_sends_only_the_parts_that_are_missing(store: ObjectStore, file: Path) -> None:
    key, sizes = f"{uuid4().hex}/raw/large.bin", list[int]()
    break_off(store, key, file, parts=2)
    assert store.digest(key) is None, "nothing half visible"
    with parts_sent(store) as numbers:
        assert store.put_file(key, file, sizes.append, _PART)
    assert numbers == [3, 4]
    assert sizes == [_PART, _PART, _PART, 5], "progress counts what S3 had"
    assert store.digest(key) == sha256_of(file.read_bytes())
    assert store.get(key) == file.read_bytes()
    assert store.unfinished(key) == []
    with parts_sent(store) as numbers:
        assert not store.put_file(key, file, sizes.append, _PART)
    assert numbers == []


@pytest.mark.parametrize("place", [0, -1])
def test_a_file_that_was_changed_since_is_what_s3_has_in_the_end(store: ObjectStore, file: Path, place: int) -> None:
    key = f"{uuid4().hex}/raw/large.bin"
    break_off(store, key, file, parts=2)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    store.put_file(key, file, part_bytes=_PART)
    assert store.digest(key) == sha256_of(content)
    assert store.get(key) == content
    assert store.unfinished(key) == []


def test_what_one_request_cannot_take_is_stored_in_parts(store: ObjectStore) -> None:
    key = f"{uuid4().hex}/models/1/weights"
    content = bytes(2 * PART_BYTES + 1)
    digest = store.put(key, content)
    assert sha256_of(store.get(key)) == digest
    store.delete([key])


def test_upkeep_drops_uploads_that_nobody_took_up(
    stack: Settings, spark: SparkSession, store: ObjectStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = f"uploads_{uuid4().hex[:8]}"
    break_off(store, f"{application}/raw/large.bin", file, parts=2)
    assert maintain(spark, stack, application).objects["unfinished uploads"] == 0, "it is of today"
    monkeypatch.setattr(upkeep, "now", lambda: datetime.now(UTC) + timedelta(days=8))
    assert maintain(spark, stack, application, dry_run=True).objects["unfinished uploads"] == 1
    freed = maintain(spark, stack, application)
    assert freed.bytes["unfinished uploads"] == 2 * _PART
    assert store.unfinished(f"{application}/") == []
