"""The record of `deeplambda.metrics`: one metric of one process at one moment.

Its JSON form is public: a field may be added, none is renamed or removed.
"""

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from deeplambda.clock import now


class RuntimeMetric(BaseModel):
    """One value. layer: batch, speed or serving; part: the process it is of; unit: s, ms, rows, rows/s, bytes, 1.

    kafka_partition: of the topic that the part reads, where the value is of one.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    layer: str
    part: str
    application: str | None = None
    name: str
    value: float
    unit: str
    kafka_partition: int | None = None
    at: AwareDatetime = Field(default_factory=now)
