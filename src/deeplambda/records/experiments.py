"""Experiments with a candidate on live traffic: which events it answers, and what it said beside the champion.

The JSON forms are public: a field may be added, none is renamed or removed.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Discriminator, Field, TypeAdapter

from deeplambda.clock import now
from deeplambda.fields import EventId

CANARY_HEADER = "X-Canary"
"""Of an answer of the model service while a canary runs: experiment, version and share, with spaces between."""
CANDIDATE_WITHIN_S = 2.0
"""What a canary's candidate does not answer by then of what the stream sends it, the champion does."""
_WHOLE = 2**64


def point(experiment: int, event_id: str) -> float:
    """Where an event stands in [0, 1): evenly drawn from its id, the same everywhere, another in each experiment."""
    digest = hashlib.blake2b(f"{experiment}:{event_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _WHOLE


class Canary(BaseModel):
    """An experiment as whoever routes events needs to know it. share: of the events, which `version` answers."""

    model_config = ConfigDict(frozen=True)

    experiment: int
    version: int
    share: float

    def takes(self, event_id: str) -> bool:
        """Whether the candidate answers the event."""
        return point(self.experiment, event_id) < self.share

    @property
    def header(self) -> str:
        """Itself as the value of `CANARY_HEADER`."""
        return f"{self.experiment} {self.version} {self.share!r}"

    @classmethod
    def of_header(cls, value: str | None) -> "Canary | None":
        """None where an answer has no such header, or one that says nothing."""
        if value is None:
            return None
        try:
            experiment, version, share = value.split()
            return cls(experiment=int(experiment), version=int(version), share=float(share))
        except ValueError:
            return None


class Said(BaseModel):
    """What one version says of an event. value: the prediction as a number, where it is one."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    version: int
    prediction: str
    confidence: float | None = None
    value: float | None = None


class _OfExperiment(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    application: str
    experiment: int
    at: AwareDatetime = Field(default_factory=now)


class ShadowAnswered(_OfExperiment):
    """What champion and candidate say of one event. candidate: None where it failed, for the reason in `error`."""

    type: Literal["ShadowAnswered"] = "ShadowAnswered"
    event_id: EventId
    kafka_partition: int
    kafka_offset: int
    champion: Said
    candidate: Said | None
    error: str | None = None


class ShadowShed(_OfExperiment):
    """So many predictions were passed over, for the shadow has a share of a core and no more."""

    type: Literal["ShadowShed"] = "ShadowShed"
    rows: int


ShadowRecord = Annotated[ShadowAnswered | ShadowShed, Discriminator("type")]
SHADOW_RECORD: TypeAdapter[ShadowRecord] = TypeAdapter(ShadowRecord)
