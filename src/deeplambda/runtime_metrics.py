"""Run-time metrics of every layer, on `deeplambda.metrics`: one JSON record for each figure."""

from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from deeplambda import topics
from deeplambda.adapters.kafka import Publisher
from deeplambda.lifecycle import now


class Measured(BaseModel):
    """One figure. layer: batch, speed or serving; part: the process; unit: s, ms, rows, rows/s, bytes, 1."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    layer: str
    part: str
    application: str | None = None
    name: str
    value: float
    unit: str
    at: AwareDatetime = Field(default_factory=now)


class Meter:
    """Sends one part's figures; they are stored when the publisher is next flushed."""

    def __init__(self, publisher: Publisher, *, layer: str, part: str, application: str | None = None) -> None:
        self._publisher = publisher
        self._facts = {"layer": layer, "part": part, "application": application}

    def measure(self, name: str, value: float, unit: str, at: datetime | None = None) -> None:
        """Queue one figure."""
        figure = Measured(name=name, value=value, unit=unit, at=at or now(), **self._facts)
        self._publisher.send(topics.METRICS, f"{figure.layer}.{figure.part}", figure)
