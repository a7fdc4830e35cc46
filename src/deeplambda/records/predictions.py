"""The record of `<application>.predictions`: one scored event, with all that an incident asks of it.

Its JSON form is public: a field may be added, none is renamed or removed.
"""

import math
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from deeplambda.fields import EventId, Moment


def _none_for_nan(confidence: Any) -> Any:
    return None if isinstance(confidence, float) and math.isnan(confidence) else confidence


class Prediction(BaseModel):
    """What the speed layer says of one event. The record is keyed by event id.

    kafka_partition, kafka_offset: the event's position in `<application>.events`. received_at: the broker's time stamp
    of the event. inference_ms: the model call that scored the event's batch. confidence: in [0, 1]; NaN, an objective's
    "I have none", is kept as None. code_version: of the application's sources.
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
    prediction: Annotated[str, Field(max_length=255)]
    confidence: Annotated[float | None, BeforeValidator(_none_for_nan)] = None
    inference_ms: float
    code_version: str
