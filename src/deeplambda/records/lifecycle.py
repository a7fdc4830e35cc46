"""The platform's own events, on `deeplambda.lifecycle`: named in the past tense.

Their JSON form is public: a field may be added, none is renamed or removed.
"""

from datetime import date
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

from deeplambda.clock import now
from deeplambda.fields import EventId
from deeplambda.records.verdict import Comparison, Verdict


class _LifecycleRecord(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    application: str
    at: AwareDatetime = Field(default_factory=now)


class PartitionPrepared(_LifecycleRecord):
    """One partition of a prepared data set has been stored on S3.

    refused: rows left out, for a label that the objective does not know or by the transform. events: of its rows, those
    that are labelled events. label_statistics: of its labels, what the application's objective asks for.
    """

    type: Literal["PartitionPrepared"] = "PartitionPrepared"
    dataset: str
    split: str
    partition: int
    partitions: int
    key: str
    sha256: str
    rows: int
    events: int = 0
    refused: int = 0
    first_refusal: str | None = None
    size_bytes: int
    label_statistics: list[float] = []
    duration_s: float


class EpochTrained(_LifecycleRecord):
    """One epoch is done and its checkpoint is on S3; `metrics` are of the test split, `validation_metrics` of
    the validation split; none where there is no such split."""

    type: Literal["EpochTrained"] = "EpochTrained"
    run: str
    epoch: int
    epochs: int
    loss: float
    metrics: dict[str, float]
    validation_metrics: dict[str, float] = {}
    rows: int
    duration_s: float
    device: str


class ModelPublished(_LifecycleRecord):
    """A model version's artefacts are complete on S3 and its card is registered."""

    type: Literal["ModelPublished"] = "ModelPublished"
    version: int
    run: str
    weights_sha256: str
    metrics: dict[str, float]


class ModelPromoted(_LifecycleRecord):
    """`version` is the champion from now on. The topic `deeplambda.champions` keeps the newest of each application."""

    type: Literal["ModelPromoted"] = "ModelPromoted"
    version: int
    previous: int | None
    weights_sha256: str
    code_sha256: str | None = None
    who: str | None = None
    why: str | None = None
    verdict: Verdict | None = None


class ModelRejected(_LifecycleRecord):
    """A version was refused promotion. reason: in words; verdict: its figures, where it was measured."""

    type: Literal["ModelRejected"] = "ModelRejected"
    version: int
    reason: str
    who: str | None = None
    why: str | None = None
    verdict: Verdict | None = None


class ModelRolledBack(_LifecycleRecord):
    """`version`, an earlier one, has replaced the champion `previous`."""

    type: Literal["ModelRolledBack"] = "ModelRolledBack"
    version: int
    previous: int
    weights_sha256: str
    code_sha256: str | None = None
    who: str | None = None
    why: str | None = None


class _OfExperiment(_LifecycleRecord):
    """number: counted by application, from 1. version: the candidate."""

    number: int
    version: int


class ExperimentStarted(_OfExperiment):
    """`version` is tried on live traffic beside the champion. The topic `deeplambda.experiments` keeps the newest
    record of each application.

    share: of a processor core that a shadow may take, of the events that a canary answers. until_decided: whether it
    ends by itself, with a promotion or a rejection.
    """

    type: Literal["ExperimentStarted"] = "ExperimentStarted"
    kind: Literal["shadow", "canary"]
    champion: int
    share: float
    until_decided: bool
    weights_sha256: str
    code_sha256: str | None = None
    who: str | None = None
    why: str | None = None


class ExperimentMeasured(_OfExperiment):
    """Candidate and champion by the labels so far; told whenever these have doubled. answered: events that the
    candidate answered; agreed: of a shadow's, those of which both say the same; failed: those that it had no answer
    to."""

    type: Literal["ExperimentMeasured"] = "ExperimentMeasured"
    answered: int
    agreed: int | None
    failed: int
    comparison: Comparison


class ChallengerFailed(_OfExperiment):
    """A canary's candidate had no answer to some events, which the champion answered in its place. event_id: the first
    of them, by which a failure that is told again is counted once; None where the candidate could not be loaded."""

    type: Literal["ChallengerFailed"] = "ChallengerFailed"
    event_id: EventId | None = None
    part: str
    reason: str


class ExperimentEnded(_OfExperiment):
    """An experiment is over. state: promoted, rejected, undecided, stopped, failed, or superseded by another
    champion."""

    type: Literal["ExperimentEnded"] = "ExperimentEnded"
    state: str
    reason: str
    who: str | None = None
    comparison: Comparison | None = None


class BatchViewPublished(_LifecycleRecord):
    """A recomputed batch view is visible; `offsets` is the horizon that it was made up to.

    rows: of the whole view. scored: how many archived events this run looked at: all, or what the archive had gained.
    taken_up: how many a run that was broken off had scored already. refused: those of `scored` that could not be, and
    are in the quarantine. missing: events that had a prediction and have none, for the archive lacks them.
    """

    type: Literal["BatchViewPublished"] = "BatchViewPublished"
    snapshot: int
    events_snapshot: int
    version: int
    offsets: dict[int, int]
    rows: int
    scored: int | None = None
    taken_up: int = 0
    refused: int = 0
    missing: int = 0
    duration_s: float


class _OfOffsets(_LifecycleRecord):
    """reader: a part, such as `archive`. Offsets from `from_offset` up to, but not including, `to_offset`."""

    reader: str
    topic: str
    partition: int
    from_offset: int
    to_offset: int


class RecordsExpired(_OfOffsets):
    """Kafka's retention has removed records before `reader` came to them; it waits until they are given up."""

    type: Literal["RecordsExpired"] = "RecordsExpired"


class TopicTruncated(_OfOffsets):
    """A topic ended before the position of `reader`, which had read other records at these offsets; it waits until what
    has them now is given up."""

    type: Literal["TopicTruncated"] = "TopicTruncated"


class RecordsSkipped(_OfOffsets):
    """A person has given up what a reader has lost; it goes on after that."""

    type: Literal["RecordsSkipped"] = "RecordsSkipped"


class QualityMeasure(BaseModel):
    """One figure of the quality of some rows: `deeplambda.application.MEASURES`. field: what it is of; None: all."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    dimension: str
    measure: str
    field: str | None = None
    value: float
    rows: int


class QualityMeasured(_LifecycleRecord):
    """The quality of an ingest's new rows, of a day's events, or of a generation's new labelled events was measured.

    subject: `ingest`, `events` or `generation`. day: which day's. ingest: the ingest's name, or `generation-` and its
    number. snapshot: where the rows are. broken: the expectations that do not hold, in words. branch: where the new
    rows wait that break a hard one.
    """

    type: Literal["QualityMeasured"] = "QualityMeasured"
    subject: Literal["ingest", "events", "generation"]
    day: date
    ingest: str | None = None
    snapshot: int | None = None
    measures: list[QualityMeasure]
    broken: list[str] = []
    branch: str | None = None


class DataChanged(_LifecycleRecord):
    """A person has changed which rows count: published or dropped held ones, rolled a table back, withdrawn records or
    restored them.

    table: of the lake. snapshot: the table's newest after it, previous: before it. subject: a branch's or a
    withdrawal's name. versions: models that learned from rows that no longer count.
    """

    type: Literal["DataChanged"] = "DataChanged"
    kind: Literal["published", "dropped", "rolled_back", "withdrawn", "restored"]
    table: str
    snapshot: int | None
    previous: int | None
    subject: str | None = None
    rows: int
    versions: list[int] = []
    who: str
    why: str


class DriftWindow(BaseModel):
    """Events of one application that followed one another, by the broker's time of the first and the last.

    from_offsets: by partition of `<application>.events`, of the first event; to_offsets: of the one after the last.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    rows: int
    first_at: AwareDatetime
    last_at: AwareDatetime
    from_offsets: dict[int, int]
    to_offsets: dict[int, int]


class DriftedField(BaseModel):
    """How one field's values in the window differ from those that the version was judged by: the chi-square statistic
    of their histograms, its p, and the population stability index."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    field: str
    statistic: float
    p: float
    psi: float


class DriftDetected(_LifecycleRecord):
    """What `version` is asked, says, or gets right is no longer what it was judged by.

    statistic, value, threshold: what crossed its threshold. fields: those that the window at the crossing differs in,
    the clearest first. examples: ids of events in it that are rarest by the first of them.
    """

    type: Literal["DriftDetected"] = "DriftDetected"
    version: int
    what: Literal["inputs", "predictions", "accuracy"]
    window: DriftWindow
    statistic: str
    value: float
    threshold: float
    fields: list[DriftedField]
    examples: list[str]


class _OfGeneration(_LifecycleRecord):
    """number: counted by application, from 1."""

    number: int


class GenerationStarted(_OfGeneration):
    """A training by the platform itself has begun.

    cause: drift, labels, schedule or person. new_labels: that came since the generation before.
    """

    type: Literal["GenerationStarted"] = "GenerationStarted"
    cause: str
    why: str
    new_labels: int


class GenerationStepped(_OfGeneration):
    """A generation has come to a step. attempt: which process works on it, from 1."""

    type: Literal["GenerationStepped"] = "GenerationStepped"
    step: str
    attempt: int


class GenerationEnded(_OfGeneration):
    """A generation is over. state: promoted, rejected, unchanged, held or failed. version: that it trained."""

    type: Literal["GenerationEnded"] = "GenerationEnded"
    state: str
    version: int | None
    verdict: str


LifecycleRecord = Annotated[
    PartitionPrepared
    | EpochTrained
    | ModelPublished
    | ModelPromoted
    | ModelRejected
    | ModelRolledBack
    | ExperimentStarted
    | ExperimentMeasured
    | ChallengerFailed
    | ExperimentEnded
    | BatchViewPublished
    | RecordsExpired
    | TopicTruncated
    | RecordsSkipped
    | QualityMeasured
    | DataChanged
    | DriftDetected
    | GenerationStarted
    | GenerationStepped
    | GenerationEnded,
    Field(discriminator="type"),
]
LIFECYCLE_RECORD: TypeAdapter[LifecycleRecord] = TypeAdapter(LifecycleRecord)
