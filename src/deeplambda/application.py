"""The application contract: everything that a user of the platform writes, and nothing else.

An application subclasses `Application` in `<folder>/application.py`. The same `transform` runs in the batch layer, in
the stream and behind REST, so training and serving cannot drift apart.

Legend of shapes: N rows of a batch, C classes, … whatever the model takes for one row.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter

from deeplambda.errors import ConfigurationError
from deeplambda.features import Specification, Tensor
from deeplambda.fields import EventId, Moment, column, stored, stored_as_it_is
from deeplambda.objective import Objective
from deeplambda.sources import AnySource
from deeplambda.sources import Source as Source  # users may import it from here
from deeplambda.splits import BySource, Splits

if TYPE_CHECKING:
    import torch

Metric = Callable[[NDArray[Any], NDArray[np.float32]], float]
"""(true labels of N rows, model outputs of shape (N, C) or (N,)) -> figure; higher is better."""


class Event(BaseModel):
    """An immutable fact from a producer; subclass it and add the payload's fields.

    Strict: a number in quotes is a wrong type. Fields that the schema does not name are let pass, so producers may add.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    event_id: EventId
    occurred_at: Moment


@dataclass(frozen=True)
class Choice:
    """One of `values`."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class LogUniform:
    """A float between `low` and `high`, uniform in its logarithm."""

    low: float
    high: float


MEASURES: Mapping[str, str] = {
    "out_of_range": "accuracy",
    "label_conflicts": "accuracy",
    "label_shift": "accuracy",
    "champion_disagreement": "accuracy",
    "nulls": "completeness",
    "unlabelled": "completeness",
    "missing_offsets": "completeness",
    "duplicates": "consistency",
    "conflicting_ids": "consistency",
    "leaks": "consistency",
    "delay_s": "timeliness",
    "unreadable": "accessibility",
    "refused": "validity",
    "refused_labels": "validity",
}
"""What is measured of new rows and of a day's events, and the dimension of quality it belongs to: docs/loop.md."""


@dataclass(frozen=True)
class Expect:
    """A bound on a measure of new rows, one of `MEASURES`. field: of the event, or whatever else the measure tells
    apart; None: each of them. hard: whether rows that break it are held back from training until a person decides."""

    measure: str
    at_most: float
    field: str | None = None
    hard: bool = True

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ConfigurationError(f"there is no measure {self.measure!r}", f"there are {', '.join(MEASURES)}")


EXPECTATIONS = (
    Expect("unreadable", 0),
    Expect("label_shift", 0.3),
    Expect("champion_disagreement", 0.2),
    Expect("refused_labels", 0.5, field="wrong_label"),
)
"""What is expected of every application's new rows that declares nothing else; add to them by (*EXPECTATIONS, …)."""


class Application(ABC):
    """Subclass this once; see `examples/digits/application.py` for one in 40 lines."""

    name: ClassVar[str]
    event: ClassVar[type[Event]]
    sources: ClassVar[Sequence[AnySource]]
    """Where the labelled rows come from: `deeplambda.sources`."""
    splits: ClassVar[Splits] = BySource()
    """How rows are divided into train, validation and test: `deeplambda.splits`."""
    objective: ClassVar[Objective]
    metrics: ClassVar[Sequence[str] | Mapping[str, Metric]]
    """Names from `deeplambda.metrics`, or functions by name. The first one decides which model is better."""
    margin: ClassVar[float] = 0.005
    """In the first metric's unit, how much worse than the champion a version may be that replaces it: the default is
    what the accuracy of equal runs differs by with other seeds."""
    proof: ClassVar[bool] = False
    """Whether the rows must show beyond chance that a version is within the margin; else it has to be so as measured,
    since the rows of a small test split show little. Where the champion cannot answer the same rows,
    nothing is shown and the version is refused; so it is with a minimum effect."""
    minimum_effect: ClassVar[float | None] = None
    """In the first metric's unit, how much better than the champion a version must be, beyond chance; None: not at all.
    It is asked of the newest labelled events where there are any, else of the test split."""
    forgetting: ClassVar[float | None] = None
    """What a version may lose on the test split that is better on the newest labelled events, beyond chance, for the
    world has changed. None: four times the margin."""
    slices: ClassVar[Sequence[str]] = ()
    """Fields of the event. Of rows with one of their values each version must be good too: by more than the margin, and
    beyond chance, none may be worse. A number's values are divided into quarters."""
    calibration_margin: ClassVar[float] = 0.05
    """How much further than the champion's a classifier's confidence may be from the share of right answers."""
    latency_budget_ms: ClassVar[float | None] = None
    """How long transform and model may take for one event, in the median, on the machine that judges; None: as long as
    they take."""
    drift_window: ClassVar[int] = 200
    """How many events that follow one another are compared with those that the champion was judged by. 0: none are."""
    hyperparameters: ClassVar[Mapping[str, Any]]
    """Defaults of `build_model`'s arguments and of the trainer's: epochs, batch_size, learning_rate, weight_decay, and
    if wanted gradient_clip (the largest norm of a step's gradient) and patience (epochs without a better first metric
    on the split `validation` after which training ends)."""
    search_space: ClassVar[Mapping[str, Choice | LogUniform]] = {}
    expectations: ClassVar[Sequence[Expect]] = EXPECTATIONS
    """Bounds on the quality of new rows. An ingest that breaks a hard one waits on a branch of the lake for a person; a
    generation whose new labelled events do is held."""
    features: ClassVar[Tensor | Specification | None] = None
    """What `transform` gives: one tensor, or several by name. None: whatever it gives in training, ever after."""
    transform_limit_s: ClassVar[float] = 10.0
    """How long `transform` may take for one batch; it is ended then, and the events that cause it are refused."""

    def examples(self, source: Source, raw: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
        """One dict for each row of a `Source`: the payload's fields, `label` and `event_id`; the last two may lack.

        Called for raw sources alone, once for each, or once for each object that a source's prefix or glob means, in a
        worker of Spark's. raw: the source's objects by name.
        Raises: CorruptObject when one cannot be read to its end.
        """
        raise ConfigurationError(f"{self.name} has a Source and no examples()", "write it, or use a reader")

    def fit(self, batches: Iterator[pa.RecordBatch]) -> Any:
        """Optional: what `transform` must know of the training rows, such as a vocabulary or means.

        batches: the payload's columns and `label`, of the train split alone, one after the other. What is returned is
        kept with the version and passed to `transform` as its second argument, wherever that runs; `deeplambda.learned`
        says what it may be. Called once for a data set, in one of Spark's workers.
        """
        return None

    @abstractmethod
    def transform(self, batch: pa.RecordBatch, state: Any = None) -> NDArray[Any] | Mapping[str, NDArray[Any]]:
        """Features of N events: an array of N rows, or several by name. N is at least 1.

        batch: the payload's columns, as `payload_schema` types them. state: what `fit` returned; it is passed only
        where the application has a `fit`, so without one the function takes `batch` alone. A row's features must not
        depend on the other rows. Keep heavy imports (torch) out of this function: it runs inside Spark's workers.
        """

    @abstractmethod
    def build_model(self, **hyperparameters: Any) -> "torch.nn.Module":
        """A fresh model that returns what the objective expects.

        Its `forward` takes the features as a tensor (N, …), or each by its name where there are several.
        """

    def loss(self, outputs: "torch.Tensor", labels_N: "torch.Tensor", features: Any) -> "torch.Tensor":
        """Optional: the loss of a batch, a scalar tensor; the objective's unless overridden.

        outputs: the model's, in fp32. features: what the model took: a tensor (N, …), or tensors by name where there
        are several. `self.objective` is one that knows the train split's labels, as balanced weights need.
        """
        return self.objective.loss(outputs, labels_N)

    def optimizer(self, parameters: "Iterator[torch.nn.Parameter]", hyperparameters: Mapping[str, Any]) -> Any:
        """Optional: a torch optimiser of the model's parameters; AdamW unless overridden.

        hyperparameters: all of them. The trainer's schedule multiplies the learning rate of each parameter group.
        """
        import torch

        return torch.optim.AdamW(
            parameters,
            lr=hyperparameters["learning_rate"],
            weight_decay=hyperparameters["weight_decay"],
            fused=True,
        )

    def augment(self, features: Any) -> Any:
        """Optional: a training batch's features, changed at random; never called on rows that a model is judged by.

        features: a tensor (N, …), or tensors by name where there are several; give the same back. Draw random numbers
        from torch: its seed follows from the run's and the epoch.
        """
        return features


def learns(application: Application) -> bool:
    """Whether the application has a `fit`, so that `transform` takes what it returned."""
    return type(application).fit is not Application.fit


def deciding_metric(application: Application) -> str:
    """Name of the metric that says which of two models is better: the first."""
    return metric_names(application)[0]


def metric_names(application: Application) -> tuple[str, ...]:
    """Names of the metrics, in their order."""
    return (application.metrics,) if isinstance(application.metrics, str) else tuple(application.metrics)


LAKE_COLUMNS = ("label", "split", "source", "source_sha256", "code_version", "ingested_at", "corrects")
"""Columns of the lake's `examples` beside the event's."""


def name_clash(event: type[Event]) -> tuple[str, str] | None:
    """The first field whose name something else has, and what that is. Spark does not tell upper from lower case."""
    taken = {name: f"the event's own {name!r}" for name in Event.model_fields}
    taken |= {name: f"the column {name!r} that the lake's examples have" for name in LAKE_COLUMNS}
    for name in payload_fields(event):
        if name.lower() in taken:
            return name, taken[name.lower()]
        taken[name.lower()] = f"the field {name!r}"
    return None


def payload_fields(event: type[Event]) -> list[str]:
    """Names of the fields that `event` adds to `Event`, in the order they were written."""
    return [name for name in event.model_fields if name not in Event.model_fields]


@lru_cache(maxsize=64)
def payload_schema(event: type[Event]) -> pa.Schema:
    """Arrow schema of the payload's fields; those that may be None are nullable.

    Raises: TypeError for a field whose type has no column.
    """
    columns = []
    for name in payload_fields(event):
        try:
            columns.append(column(name, event.model_fields[name].annotation))
        except TypeError as exc:
            raise TypeError(f"{event.__name__}.{name}: {exc}") from exc
    return pa.schema(columns)


def payload_row(event: Event) -> dict[str, Any]:
    """The payload of one checked event, by column."""
    return {name: stored(getattr(event, name)) for name in payload_fields(type(event))}


def event_of(event: type[Event], columns: Mapping[str, Any]) -> Event:
    """The event of a row's columns. What is NULL is None where the field may be, and else the field's default.

    Raises: ValidationError.
    """
    defaults = _defaults(event)
    return event.model_validate(
        restored(event, {name: value for name, value in columns.items() if value is not None or name not in defaults})
    )


@lru_cache(maxsize=64)
def _defaults(event: type[Event]) -> frozenset[str]:
    """The fields that have a default and may not be None."""
    required = (field.name for field in payload_schema(event) if not field.nullable)
    return frozenset(name for name in required if not event.model_fields[name].is_required())


def restored(event: type[Event], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as columns hold them, as the event's strict fields take them: an enum's member of its value, and the like.

    Raises: ValidationError.
    """
    adapters = _restoring(event)
    return {
        name: adapters[name].validate_python(_as_mapping(value), strict=False)
        if name in adapters and value is not None
        else value
        for name, value in values.items()
    }


@lru_cache(maxsize=64)
def _restoring(event: type[Event]) -> dict[str, TypeAdapter[Any]]:
    """Of the fields that are not stored as they are."""
    return {
        name: TypeAdapter[Any](event.model_fields[name].annotation)  # type: ignore[arg-type]  # a field has one
        for name in payload_fields(event)
        if not stored_as_it_is(event.model_fields[name].annotation)
    }


def _as_mapping(value: Any) -> Any:
    """Arrow gives a map as pairs."""
    return dict(value) if isinstance(value, list) and value and isinstance(value[0], tuple) else value


def payload_batch(event: type[Event], events: Sequence[Event]) -> pa.RecordBatch:
    """The payloads of N checked events as one Arrow batch, ready for `Application.transform`."""
    schema = payload_schema(event)
    return pa.RecordBatch.from_arrays(
        [pa.array([stored(getattr(row, field.name)) for row in events], type=field.type) for field in schema],
        schema=schema,
    )
