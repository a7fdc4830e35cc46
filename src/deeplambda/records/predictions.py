"""A prediction: the record of `<application>.predictions`, and the columns that both views keep of it.

The JSON form and the columns are public: one may be added, none is renamed or removed.
"""

import math
from typing import Annotated, Any

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from deeplambda.fields import EventId, Moment

VIEW_SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("kafka_partition", pa.int32(), nullable=False),
        pa.field("kafka_offset", pa.int64(), nullable=False),
        pa.field("occurred_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("predicted_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("model_version", pa.int32(), nullable=False),
        pa.field("prediction", pa.string(), nullable=False),
        pa.field("confidence", pa.float64()),
    ]
)
"""The columns of a prediction in both views; the tables in Hive and MySQL and their union are derived from it."""

PREDICTION_LIMIT = 255
"""Characters of a prediction: what its column in MySQL holds."""


def _none_for_nan(confidence: Any) -> Any:
    return None if isinstance(confidence, float) and math.isnan(confidence) else confidence


class Prediction(BaseModel):
    """The speed layer's prediction for one event. The record is keyed by event id.

    kafka_partition, kafka_offset: the event's position in `<application>.events`. received_at: the broker's time stamp
    of the event. inference_ms: the model call that scored the event's batch. confidence: in [0, 1]; None
    where the objective has none, which it gives as NaN. code_version: of the application's sources.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    application: Annotated[str, Field(min_length=1, max_length=64)]
    event_id: EventId
    kafka_partition: Annotated[int, Field(ge=0, lt=2**31)]
    kafka_offset: Annotated[int, Field(ge=0, lt=2**63)]
    occurred_at: Moment
    received_at: AwareDatetime
    predicted_at: AwareDatetime
    model_version: Annotated[int, Field(ge=0, lt=2**31)]
    prediction: Annotated[str, Field(max_length=PREDICTION_LIMIT)]
    confidence: Annotated[float | None, BeforeValidator(_none_for_nan)] = None
    inference_ms: float
    code_version: str
