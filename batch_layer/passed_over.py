"""Passed over: raw objects that an ingest need not read, for the lake has their rows.

An ingest that was published leaves a list on S3: the code that read the objects, and S3's tag of each one's content.
A property of `examples` has the hash of the list, so that a table which is made anew has none. As long as objects are
only added, the next ingest reads those alone. It reads all when what it adds could depend on rows that it would not
see: when the code is another, when an object was changed or removed, or where groups of rows must not be divided that
only the files tell, for the lake has no column of them.
"""

from collections.abc import Mapping, Set
from importlib.metadata import version
from typing import Any

from pydantic_core import from_json, to_json
from pyspark.sql import SparkSession

from deeplambda.adapters.s3 import ObjectStore, StoredObject
from deeplambda.application import payload_schema
from deeplambda.errors import BadInput, CorruptObject
from deeplambda.loading import PackedApplication

_PROPERTY = "deeplambda.ingested-sha256"


def known_objects(
    spark: SparkSession, store: ObjectStore, packed: PackedApplication, objects: Mapping[str, StoredObject]
) -> Set[str]:
    """Names of the objects that need not be read. objects: all that the sources mean, by name. Raises: NotReady."""
    application = packed.load()
    if application.splits.grouped and application.splits.column not in payload_schema(application.event).names:
        return frozenset()
    list_ = _last_list(spark, store, packed.name)
    if list_.get("code") != _code(packed) or not list_["objects"].items() <= _tags(objects).items():
        return frozenset()
    known: Set[str] = list_["objects"].keys()
    return known


def keep_list(
    spark: SparkSession, store: ObjectStore, packed: PackedApplication, objects: Mapping[str, StoredObject]
) -> None:
    """Have the next ingest pass over these objects, by name. Raises: NotReady."""
    digest = store.put(_key(packed.name), to_json({"code": _code(packed), "objects": _tags(objects)}))
    spark.sql(f"ALTER TABLE lake.{packed.name}.examples SET TBLPROPERTIES ('{_PROPERTY}' = '{digest}')")


def _last_list(spark: SparkSession, store: ObjectStore, application: str) -> dict[str, Any]:
    found = spark.sql(f"SHOW TBLPROPERTIES lake.{application}.examples").where(f"key = '{_PROPERTY}'").first()
    if found is None:
        return {}
    try:
        list_: dict[str, Any] = from_json(store.get(_key(application), sha256=found["value"]))
    except (BadInput, CorruptObject):  # a list of another ingest, which ended before it was the table's
        return {}
    return list_


def _tags(objects: Mapping[str, StoredObject]) -> dict[str, str]:
    return {name: found.tag for name, found in objects.items()}


def _code(packed: PackedApplication) -> str:
    return f"{packed.code_version} {version('deeplambda')}"


def _key(application: str) -> str:
    return f"{application}/ingested.json"
