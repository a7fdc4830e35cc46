"""The SQL function `predict_<application>(payload columns…)`: the champion's prediction for each row.

The application's own transform runs in Spark's Python worker, the model in the model service: no PyTorch here.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from pyspark.sql.functions import arrow_udf
from pyspark.sql.types import StringType

from deeplambda.adapters.model_service import ModelClient
from deeplambda.application import Application, payload_schema
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.loading import PackedApplication

_PATIENCE_S = 5  # an analyst waits for the answer


def add_model_function(spark: SparkSession, settings: Settings, packed: PackedApplication) -> None:
    """Add `predict_<application>` to the sessions that are opened from now on."""
    spark.sparkContext.addPyFile(str(packed.zip_file))
    name = f"predict_{packed.name}"
    columns = ", ".join(payload_schema(packed.load().event).names)
    usage = f"_FUNC_({columns}) - The prediction of {packed.name}'s champion, as text; NULL where an argument is NULL."
    function = arrow_udf(prediction_of(settings, packed), StringType())._unwrapped._judf
    spark._jvm.deeplambda.gateway.SharedFunctions.add(name, usage, function)


def prediction_of(settings: Settings, packed: PackedApplication) -> Callable[..., pa.Array]:
    """A function of one Arrow array for each payload column, all of N rows, that returns N predictions as strings.

    Raises: BadInput for the wrong number or type of columns, and when the model refuses the features; NotReady when
    the model service stays away.
    """

    def predict(*columns: pa.Array) -> pa.Array:
        application = packed.load()
        batch = _batch(packed.name, payload_schema(application.event), columns)
        complete = pa.array([True] * batch.num_rows)
        for column in batch.columns:
            complete = pc.and_(complete, column.is_valid())
        rows = batch.filter(complete)
        if rows.num_rows == 0:
            return pa.nulls(batch.num_rows, pa.string())
        scored = _client(settings, packed.name).predict(_features(application, rows))
        values = pa.array(application.objective.decode(scored.outputs).values, pa.string())
        return pc.replace_with_mask(pa.nulls(batch.num_rows, pa.string()), complete, values)

    predict.__name__ = f"predict_{packed.name}"  # the column's name in a result
    return predict


def _features(application: Application, rows: pa.RecordBatch) -> NDArray[np.float32]:
    try:
        return application.transform(rows)
    except Exception as exc:  # a user's code, on values that no event gate has seen
        raise BadInput(f"{application.name}'s transform refused a row: {exc}", "give it what its events carry") from exc


def _batch(application: str, schema: pa.Schema, columns: tuple[pa.Array, ...]) -> pa.RecordBatch:
    wanted = ", ".join(f"{field.name} {field.type}" for field in schema)
    if len(columns) != len(schema):
        raise BadInput(f"predict_{application} got {len(columns)} columns", f"give it {wanted}")
    try:
        cast = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise BadInput(f"predict_{application} got a column of another type: {exc}", f"give it {wanted}") from exc
    return pa.RecordBatch.from_arrays(cast, schema=schema)


@lru_cache(maxsize=4)
def _client(settings: Settings, application: str) -> ModelClient:
    """One pool of connections for the life of the worker."""
    return ModelClient(settings, application, patience_s=_PATIENCE_S)
