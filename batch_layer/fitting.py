"""Fitting: what an application's `fit` learns from the train split of a data set, once, and keeps beside its shards."""

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from pydantic_core import from_json, to_json
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema

from batch_layer.shard_format import state_key
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import learns, payload_schema
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.learned import EncodedState, decode_state, encode_state
from deeplambda.loading import PackedApplication
from deeplambda.records.featurizer import Featurizer, said

_LEARNED = pa.schema([("format", pa.string()), ("content", pa.binary()), ("failure", pa.string())])


def learned_state(settings: Settings, packed: PackedApplication, dataset: str, train: DataFrame) -> EncodedState | None:
    """What `fit` learns from the data set's train split; None for an application without one. Learned once.

    Raises: BadInput when `fit` fails.
    """
    application = packed.load()
    if not learns(application):
        return None
    store, key = ObjectStore(settings), state_key(packed.name, dataset)
    if store.digest(key) is not None:
        return fetch_state(store, packed.name, dataset)
    columns = [*payload_schema(application.event).names, "label"]
    answer = train.select(columns).coalesce(1).mapInArrow(_fitting(packed), from_arrow_schema(_LEARNED)).first()
    if answer is None or answer["failure"] is not None:
        reason = answer["failure"] if answer else "the train split has no rows"
        raise BadInput(f"fit of {packed.name} failed: {reason}", "fix the application's fit")
    state = EncodedState(format=answer["format"], content=bytes(answer["content"]))
    store.put(key, to_json({"format": state.format, "content": b64encode(state.content).decode()}))
    return state


def fetch_state(store: ObjectStore, application: str, dataset: str) -> EncodedState | None:
    """The learned state of a prepared data set; None where the application learns nothing. Raises: NotReady."""
    key = state_key(application, dataset)
    if store.digest(key) is None:
        return None
    kept = from_json(store.get(key))
    return EncodedState(format=kept["format"], content=b64decode(kept["content"]))


def featurizer_of(packed: PackedApplication, state: EncodedState | None) -> Featurizer:
    """The application's transform with its learned state."""
    application = packed.load()
    return Featurizer(
        application,
        code_version=packed.code_version,
        state=decode_state(application.fit, state) if state else None,
        state_sha256=state.sha256 if state else None,
    )


def _fitting(packed: PackedApplication) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def fit(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        answer: dict[str, Any] = {"failure": None}
        try:
            application = packed.load()
            state = encode_state(application.fit(batches))
            decode_state(application.fit, state)  # JSON keeps no NaN, for one
            answer |= {"format": state.format, "content": state.content}
        except Exception as exc:  # a user's code: told to the driver in one line
            answer["failure"] = said(exc)
        yield pa.RecordBatch.from_pylist([answer], schema=_LEARNED)

    return fit
