"""A prediction: the record of `<application>.predictions`, and the columns that both views keep of it.

The JSON form and the columns are public: one may be added, none is renamed or removed.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import to_json

from deeplambda.application import Application, Event
from deeplambda.fields import EventId, Moment, stored
from deeplambda.objective import PREDICTION_LIMIT

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
        pa.field("value", pa.float64()),
        pa.field("scores", pa.string()),
        pa.field("slices", pa.string()),
    ]
)
"""The columns of a prediction in both views; the tables in Hive and MySQL and their union are derived from it.

value: the prediction as a number, where it is one. scores: probabilities by the name of class or label, as JSON text.
slices: the event's values of the fields that the application declares as slices, as JSON text. A column that is added
to the end must be nullable: rows and snapshots of before have none.
"""

SEEN_SCHEMA = pa.schema(
    [field.with_nullable(True) for field in VIEW_SCHEMA]
    + [pa.field("reason", pa.string()), pa.field("detail", pa.string()), pa.field("record", pa.binary())]
    + [pa.field("kafka_timestamp", VIEW_SCHEMA.field("occurred_at").type)]
)
"""An archived event that was looked at: a row of the batch view, or why it is refused and its bytes; and when the
broker took it."""


Slice = str | int | float | bool | None
_SLICE_CHARACTERS = 100


def slices_of(application: Application, event: Event) -> dict[str, Slice] | None:
    """The event's values of the fields that the application declares as slices, long ones cut; None without any."""
    if not application.slices:
        return None
    values = {name: stored(getattr(event, name)) for name in application.slices}
    return {
        name: value if isinstance(value, int | float | None) else str(value)[:_SLICE_CHARACTERS]
        for name, value in values.items()
    }


def json_text(value: Mapping[str, Any] | None) -> str | None:
    """Scores or slices as the views keep them."""
    return None if value is None else to_json(value).decode()


def _none_for_nan(number: Any) -> Any:
    return None if isinstance(number, float) and math.isnan(number) else number


class Prediction(BaseModel):
    """The speed layer's prediction for one event. The record is keyed by event id.

    kafka_partition, kafka_offset: the event's position in `<application>.events`. received_at: the broker's time stamp
    of the event. inference_ms: the model call that scored the event's batch. confidence: in [0, 1]; None
    where the objective has none, which it gives as NaN. code_version: of the application's sources. value: the
    prediction as a number, where it is one. scores: probabilities by the name of class or label, where there are any.
    slices: as `slices_of` has them. replayed: whether the event had been scored before; its times then tell no delay.
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
    value: Annotated[float | None, BeforeValidator(_none_for_nan)] = None
    scores: dict[str, float] | None = None
    inference_ms: float
    code_version: str
    slices: dict[str, Slice] | None = None
    replayed: bool = False
