"""The SQL function `predict_<application>(payload columns…)`: the champion's prediction for each row.

The application's own transform runs in Spark's Python worker, the model in the model service: no PyTorch here.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession
from pyspark.sql.functions import arrow_udf
from pyspark.sql.types import StringType

from deeplambda.adapters.model_service import ModelClient, OtherFeatures
from deeplambda.application import payload_schema
from deeplambda.config import Settings
from deeplambda.errors import BadInput, InvalidEvent
from deeplambda.features import chosen
from deeplambda.loading import PackedApplication
from deeplambda.records.answers import answers
from deeplambda.records.featurizer import Featurizer
from deeplambda.records.isolation import halved
from deeplambda.service.champion_code import ChampionCode

_PATIENCE_S = 5  # an analyst waits for the answer


def add_model_function(spark: SparkSession, settings: Settings, packed: PackedApplication) -> None:
    """Add `predict_<application>` to the sessions that are opened from now on."""
    name = f"predict_{packed.name}"
    columns = ", ".join(payload_schema(packed.load().event).names)
    usage = f"_FUNC_({columns}) - The prediction of {packed.name}'s champion, as text; NULL where a required field is."
    function = arrow_udf(prediction_of(settings, packed.name), StringType())._unwrapped._judf
    spark._jvm.deeplambda.gateway.SharedFunctions.add(name, usage, function)


def prediction_of(settings: Settings, name: str) -> Callable[..., pa.Array]:
    """A function of one Arrow array for each payload column, all of N rows, that returns N predictions as strings.

    The columns are those of the champion's schema. A row that its transform or model refuses gives NULL.
    Raises: BadInput for the wrong number or type of columns; NotReady when the model service stays away.
    """

    def predict(*columns: pa.Array) -> pa.Array:
        client, code = _champion(settings, name)
        while True:
            try:
                predictions = _predictions(name, client, code.current(), columns)
            except OtherFeatures as other:
                code.load(other.model_version)
                continue
            except BadInput:  # the columns, perhaps because they are those of a newer champion's schema
                if code.renew():
                    continue
                raise
            if predictions.null_count < len(predictions) or not code.renew():
                return predictions

    predict.__name__ = f"predict_{name}"  # the column's name in a result
    return predict


def _predictions(name: str, client: ModelClient, featurizer: Featurizer, columns: tuple[pa.Array, ...]) -> pa.Array:
    batch = _batch(name, payload_schema(featurizer.application.event), columns)
    complete = pa.array([True] * batch.num_rows)
    for field in batch.schema:
        if not field.nullable:
            complete = pc.and_(complete, batch[field.name].is_valid())
    positions = np.flatnonzero(complete.to_numpy(zero_copy_only=False))
    passed = featurizer.isolated(batch.filter(complete))
    scored = halved(
        lambda rows: client.predict(chosen(passed.features, rows), featurizer.id), len(passed.rows_N), InvalidEvent
    )
    values: list[str | None] = [None] * batch.num_rows
    for rows, reply in scored.pieces:
        answered = answers(featurizer.application.objective, reply.outputs)
        for row, value in zip(answered.rows_N, answered.values_N, strict=True):
            values[int(positions[passed.rows_N[rows.start + row]])] = value
    return pa.array(values, pa.string())


def _batch(application: str, schema: pa.Schema, columns: tuple[pa.Array, ...]) -> pa.RecordBatch:
    wanted = ", ".join(f"{field.name} {field.type}" for field in schema)
    if len(columns) != len(schema):
        raise BadInput(f"predict_{application} got {len(columns)} columns", f"give it {wanted}")
    try:
        cast = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise BadInput(f"predict_{application} got a column of another type: {exc}", f"give it {wanted}") from exc
    return pa.RecordBatch.from_arrays(cast, schema=schema)


@lru_cache(maxsize=64)
def _champion(settings: Settings, name: str) -> tuple[ModelClient, ChampionCode]:
    """One pool of connections and one featurizer for the life of the worker."""
    client = ModelClient(settings, name, patience_s=_PATIENCE_S)
    return client, ChampionCode(settings, name, client, patience_s=_PATIENCE_S)
