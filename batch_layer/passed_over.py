"""Passed over: raw objects that an ingest need not read, for an earlier one has dealt with their rows.

An ingest that was published leaves a list on S3: the snapshot that `examples` was at then, the code that read the
objects, and S3's tag of each one's content. While snapshot and code are the same and objects are only added, the next
ingest reads those alone. It reads all when what it adds could depend on rows that it would not see: when an object was
changed or removed, when a person published or took back rows, or where no row may divide a group and the lake has no
column to tell groups by, or writes their names otherwise than the files.
"""

from collections.abc import Set
from importlib.metadata import version
from typing import Any

import pyarrow as pa
from pydantic_core import from_json, to_json
from pyspark.sql import SparkSession

from batch_layer.raw_objects import RawObjects
from deeplambda.adapters.lake import current_snapshot
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application, payload_schema
from deeplambda.errors import BadInput
from deeplambda.loading import PackedApplication, platform_code
from deeplambda.sources import matched

_READING = ("pyspark", "pyarrow", "pydantic")
"""Libraries that decide what rows an object has."""


def known_objects(spark: SparkSession, store: ObjectStore, packed: PackedApplication, objects: RawObjects) -> Set[str]:
    """Names of the objects that need not be read. objects: all that the sources mean.

    Raises: NotReady, CorruptObject.
    """
    list_ = _last_list(store, packed.name)
    same = list_ and (list_["snapshot"], list_["code"]) == (_snapshot(spark, packed.name), _code(packed))
    if not same or list_["snapshot"] is None or not _groups_are_told(packed.load()):
        return frozenset()
    known: dict[str, str] = dict(list_["objects"])
    unchanged = all(objects.tags.get(name) == tag for name, tag in known.items())
    return known.keys() if unchanged else frozenset()


def keep_list(spark: SparkSession, store: ObjectStore, packed: PackedApplication, objects: RawObjects) -> None:
    """Have the next ingest pass over these objects. Raises: NotReady."""
    list_ = {"snapshot": _snapshot(spark, packed.name), "code": _code(packed), "objects": objects.tags}
    store.put(_key(packed.name), to_json(list_))


def may_hold_later(application: Application, known: Set[str], split: str, name: str) -> bool:
    """Whether rows of a split may be in a known object that comes after `name`."""
    return any(
        other > name
        for source in application.sources
        if getattr(source, "split", None) in (None, split)
        for path in source.paths
        for other in matched(path, known)
    )


def _last_list(store: ObjectStore, application: str) -> dict[str, Any]:
    try:
        list_: dict[str, Any] = from_json(store.get(_key(application)))
    except BadInput:  # there is none, or it is damaged
        return {}
    return list_


def _groups_are_told(application: Application) -> bool:
    splits, payload = application.splits, payload_schema(application.event)
    if not splits.grouped:
        return True
    column = splits.column
    kind = payload.field(column).type if column in payload.names else None
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_integer(kind))


def _snapshot(spark: SparkSession, application: str) -> int | None:
    return current_snapshot(spark, f"lake.{application}.examples")


def _code(packed: PackedApplication) -> str:
    libraries = (f"{name} {version(name)}" for name in _READING)
    return " ".join((packed.code_version, platform_code("deeplambda", "batch_layer"), *libraries))


def _key(application: str) -> str:
    return f"{application}/ingested.json"
