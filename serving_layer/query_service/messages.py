"""What the service takes and gives, as JSON; the OpenAPI document follows from these models."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from serving_layer.sql import Store, StoreChoice
from serving_layer.sql.guard import ROW_LIMIT, STATEMENT_LIMIT

Status = Literal["queued", "running", "done", "failed", "cancelled"]
Share = Annotated[float, Field(ge=0, le=1)]


class QueryRequest(BaseModel):
    """One statement. store `auto` takes MySQL when every table is there, else Hive."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sql: Annotated[str, Field(min_length=1, max_length=STATEMENT_LIMIT)]
    store: StoreChoice = "auto"
    limit: Annotated[int, Field(ge=1, le=ROW_LIMIT)] = ROW_LIMIT


class Column(BaseModel):
    """A column of an answer; its type as the store names it."""

    name: str
    type: str


class Answer(BaseModel):
    """Rows. Moments are ISO 8601 in UTC, decimals are text (they are exact), bytes are base64, NaN is "NaN".
    Whole numbers are numbers to their last digit: a parser that knows only doubles rounds those past 2^53.

    truncated: there are more rows, or they were too many bytes.
    """

    columns: list[Column]
    rows: list[list[Any]]
    row_count: int
    truncated: bool
    elapsed_ms: float
    store: Store


class QueryProgress(BaseModel):
    """How a running query is getting on. state: as HiveServer2 names it."""

    state: str
    elapsed_ms: float


class Query(BaseModel):
    """A query that Hive answers. error: why it failed."""

    id: str
    status: Status
    store: Store
    sql: str
    submitted_at: AwareDatetime
    finished_at: AwareDatetime | None = None
    progress: QueryProgress | None = None
    result: Answer | None = None
    error: str | None = None


class Health(BaseModel):
    """The service can answer; queries of Hive that wait and run."""

    status: Literal["ok"] = "ok"
    queued: int
    running: int


class Alive(BaseModel):
    """The process runs."""

    live: Literal[True] = True


class Model(BaseModel):
    """A published model version. metrics: of the test split."""

    application: str
    version: int
    champion: bool
    run: str
    published_at: AwareDatetime
    weights_sha256: str
    metrics: dict[str, float]


class Models(BaseModel):
    """Published model versions, newest first."""

    models: list[Model]


class Application(BaseModel):
    """An application. event: JSON Schema of what its producers send; champion: the version that serves."""

    name: str
    code_version: str
    event: dict[str, Any]
    topics: dict[str, str]
    champion: int | None


class Applications(BaseModel):
    """The applications that are served."""

    applications: list[Application]


class LiveVersion(BaseModel):
    """Real-time predictions of one model version. rate_per_s: over the last minute."""

    model_version: int
    rows: int
    rate_per_s: float
    confidence_mean: float | None
    first_predicted_at: AwareDatetime
    last_predicted_at: AwareDatetime


class Live(BaseModel):
    """The real-time view's newest rows: all, or 100,000 of an application. event_to_row_p50_ms, …_p99_ms: of the
    newest thousand."""

    rows: int
    rate_per_s: float
    event_to_row_p50_ms: float | None
    event_to_row_p99_ms: float | None
    versions: list[LiveVersion]


class LabelledVersion(BaseModel):
    """What the stream answered by one version, where the truth is known. interval_95: Wilson's, of the accuracy.
    unlabelled: how many more there are whose truth is not known.

    Of predictions that are numbers, correct, accuracy and interval_95 are null, and mean_absolute_error is given, from
    two rows on with Student's interval (error_interval_95).
    """

    model_version: int
    rows: int
    correct: int | None = None
    accuracy: Share | None = None
    interval_95: tuple[Share, Share] | None = None
    mean_absolute_error: float | None = None
    error_interval_95: tuple[float, float] | None = None
    unlabelled: int = 0


class LabelledHour(LabelledVersion):
    """The same, of events that occurred within one hour, which began at `hour`."""

    hour: AwareDatetime


class LabelledClass(LabelledVersion):
    """The same, of events whose truth is `label`."""

    label: str


class LabelledSlice(LabelledVersion):
    """The same, of events of one slice that the application declares, named as the gate does: `shop=4` or, of numbers,
    `amount in [10, 25)`."""

    slice: str


class Statistics(BaseModel):
    """How an application is doing now. horizon: by partition, the first offset that the batch view has not absorbed.

    waiting: by part, the records that it has not taken up, at its last report; null where it reported none of late.
    waiting_by_partition: of the part `stream`, where any do. behind: the parts that do not keep up.
    labelled: of each version; labelled_hours: of each version and hour, the newest first; labelled_classes: of the
    newest version, by what is true, the most frequent first; labelled_slices: of each version and slice. Of versions,
    hours and classes there are 200 at most, the first. All of what the stream answered in 30 days: of the newest
    100,000 answers with a label and as many without.
    """

    application: str
    at: AwareDatetime
    champion: int | None
    horizon: dict[int, int]
    horizon_moved_at: AwareDatetime | None
    live: Live
    labelled: list[LabelledVersion]
    waiting: dict[str, int | None]
    waiting_by_partition: dict[int, int]
    behind: list[str] = []
    labelled_hours: list[LabelledHour] = []
    labelled_classes: list[LabelledClass] = []
    labelled_slices: list[LabelledSlice] = []


class Problem(BaseModel):
    """An error, as RFC 9457 has it. line, column: where a statement cannot be read; remedy: what to do."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    remedy: str | None = None
    line: int | None = None
    column: int | None = None
