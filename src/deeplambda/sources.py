"""Sources: where an application's labelled rows come from, and how they are divided into splits.

An application names sources, and a rule for splits where each source does not name its own:

    class Sentiment(Application):
        sources = (
            Lines("rt-polarity.pos", label="positive"),
            Lines("rt-polarity.neg", label="negative"),
        )
        splits = ByHash(train=0.8, validation=0.1, test=0.1)

    class Fraud(Application):
        sources = (
            Parquet("2018-0*.parquet", columns={"amount": "TX_AMOUNT"}, label="TX_FRAUD", event_id="TRANSACTION_ID"),
        )
        splits = ByTime("TX_DATETIME", train=("2018-07-25", "2018-08-01"), test=("2018-08-08", "2018-08-15"))

    class Pets(Application):
        sources = (Images("train/", split="train"), Images("test/", split="test"))

| source | one example is |
|---|---|
| `Lines` | a line of a text |
| `Csv` | a line of a table, with a header or without |
| `JsonLines` | a line that is a JSON object |
| `Parquet` | a row |
| `Images` | a PNG or JPEG; its folder is its label |
| `Source` | whatever the application's own `examples()` makes of the objects |

A path is the name of an object under `<application>/raw/`, a prefix that ends in `/` (all below it), or a glob
(`2018-08-*.parquet`; `*` stops at a `/`). Prefixes and globs pass over names that begin with `.` or `_`, and are looked
up anew at each ingest. Names that end in `.gz` are inflated. An object may serve several sources.

Each row is checked against the event's schema. One that cannot be read or breaks the schema goes to
`lake.<application>.quarantine` with its reason and its original; the rows around it are kept. A row whose label is
missing is kept without one, and training passes it over.

| rule | a row's split is |
|---|---|
| `BySource` | that of its source |
| `ByHash` | drawn by its event id |
| `ByGroup` | drawn by one of its columns: all rows of a group share a split |
| `ByTime` | the interval that its time lies in |

The splits are train, validation and test; validation may be left out. Under every rule, a source that names a split
keeps its rows there. A column is a field of the event, `occurred_at`, or else a column of the source.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

from deeplambda.errors import ConfigurationError

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")

# Sources


@dataclass(frozen=True, kw_only=True)
class Source:
    """Raw objects that are read together: for MNIST, a file of images and the file of their labels."""

    objects: tuple[str, ...]
    split: str | None = None

    def __post_init__(self) -> None:
        _check_split(self.split)
        for name in self.objects:
            _check_path(name)
            if _is_glob(name) or name.endswith("/"):
                raise ConfigurationError(
                    f"a Source has the object {name!r}", "name each object; readers take prefixes and globs"
                )

    @property
    def paths(self) -> tuple[str, ...]:
        """What is matched with the names of objects."""
        return self.objects


@dataclass(frozen=True)
class Reader:
    """What Spark reads without code of the application's. path: an object's name, a prefix ending in `/`, or a glob."""

    path: str

    def __post_init__(self) -> None:
        _check_path(self.path)
        _check_split(getattr(self, "split", None))

    @property
    def paths(self) -> tuple[str, ...]:
        """What is matched with the names of objects."""
        return (self.path,)


@dataclass(frozen=True)
class Lines(Reader):
    """UTF-8 text, one example a line; blank lines are passed over, a line that is not UTF-8 goes to quarantine.

    column: the payload's field. label: of every line.
    """

    column: str = "text"
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Table(Reader):
    """Rows with columns; the arguments of `Csv`, `JsonLines` and `Parquet`.

    columns: for fields of the payload, the column of another name that fills them. label: the column of labels, read as
    text (a boolean as `true` or `false`). event_id: a column; None: the id follows from the row's content, so equal
    rows have one id. occurred_at: a column of times, in UTC where they name no zone; None: the time of the ingest.
    """

    _: KW_ONLY
    columns: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    event_id: str | None = None
    occurred_at: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Csv(Table):
    """Comma-separated values: `Csv("train.csv", label="class")`.

    separator: between cells. header: whether the first line names the columns; else they are `_c0`, `_c1`, …
    multiline: whether a quoted cell may go on in the next line; each file is then read whole, by one task. All files of
    one source have the same columns in the same order.
    """

    _: KW_ONLY
    separator: str = ","
    header: bool = True
    multiline: bool = False


@dataclass(frozen=True)
class JsonLines(Table):
    """One JSON object a line: `JsonLines("clicks/*.jsonl.gz", label="bought", event_id="id")`."""


@dataclass(frozen=True)
class Parquet(Table):
    """Parquet files of one schema: `Parquet("2018-*.parquet", columns={"amount": "TX_AMOUNT"}, label="TX_FRAUD")`."""


@dataclass(frozen=True)
class Images(Reader):
    """PNG and JPEG files in a folder for each label: `Images("pets/")` of `pets/cat/1.png`, `pets/dog/2.jpg`.

    column: the payload's field for a file's bytes; None: the only one of type `bytes`. A file beside the folders has no
    label; one that is neither PNG nor JPEG goes to quarantine.
    """

    _: KW_ONLY
    column: str | None = None
    split: str | None = None

    def label_of(self, name: str) -> str | None:
        """Label of an object: the folder right below the prefix; of a glob, the folder that the file is in."""
        folders = name.removeprefix(self.path if self.path.endswith("/") else "").split("/")[:-1]
        if not folders:
            return None
        return folders[0] if self.path.endswith("/") else folders[-1]


AnySource = Source | Reader


def matches(path: str, name: str) -> bool:
    """Whether a source's path means the object `name`; both are relative to `<application>/raw/`."""
    if path.endswith("/"):
        return name.startswith(path) and not _hidden(name.removeprefix(path))
    if not _is_glob(path):
        return name == path
    patterns, steps = path.split("/"), name.split("/")
    return (
        len(patterns) == len(steps)
        and all(fnmatchcase(step, pattern) for pattern, step in zip(patterns, steps, strict=True))
        and not any(_hidden(step) for pattern, step in zip(patterns, steps, strict=True) if _is_glob(pattern))
    )


def matched(path: str, names: Iterable[str]) -> list[str]:
    """Which of the names a source's path means, sorted."""
    return sorted(name for name in names if matches(path, name))


def _is_glob(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _hidden(name: str) -> bool:
    return any(step.startswith((".", "_")) for step in name.split("/"))


def _check_path(path: str) -> None:
    if not path or path.startswith("/") or "**" in path or {"", ".", ".."} & set(path.rstrip("/").split("/")):
        raise ConfigurationError(
            f"a source's path is {path!r}",
            "give an object's name, a prefix ending in '/', or a glob, relative to <application>/raw/",
        )


def _check_split(split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise ConfigurationError(f"a source's split is {split!r}", f"choose from {', '.join(SPLITS)}")


# Splits


class Splits(Protocol):
    """What ingest asks of a rule."""

    @property
    def column(self) -> str | None:
        """The column that `split_of` takes a value of, or that holds the group; None for neither."""

    @property
    def grouped(self) -> bool:
        """Whether rows with one value of `column` must share a split."""

    @property
    def names(self) -> tuple[str, ...]:
        """The splits into which it divides sources that name none."""

    def split_of(self, event_id: str, value: Any) -> str | None:
        """The split of a row whose source names none; None: the row is left out. value: of `column`.

        Raises: ValueError for a value that says nothing.
        """


@dataclass(frozen=True)
class BySource:
    """Each source names its split. group: a column whose values must not be in two splits, such as a patient."""

    group: str | None = None

    @property
    def column(self) -> str | None:
        """The declared group."""
        return self.group

    @property
    def grouped(self) -> bool:
        """With a declared group."""
        return self.group is not None

    @property
    def names(self) -> tuple[str, ...]:
        """None: the sources name them."""
        return ()

    def split_of(self, event_id: str, value: Any) -> str | None:
        """Never called: every source names its split."""
        raise ValueError("its source names no split")


@dataclass(frozen=True)
class _Shares:
    """Shares between 0 and 1 with the sum 1; what is not given divides the rest equally."""

    _: KW_ONLY
    train: float = 0.8
    validation: float | None = None
    test: float | None = None

    def __post_init__(self) -> None:
        given = [share for share in (self.train, self.validation, self.test) if share is not None]
        open_splits = 3 - len(given)
        rest = round(1 - sum(given), 9)
        if min(given) < 0 or rest < 0 or (rest > 0 and not open_splits):
            raise ConfigurationError(
                f"the shares of the splits are {', '.join(f'{share:g}' for share in given)}", "let them sum to 1"
            )
        for name in (VALIDATION, TEST):
            if getattr(self, name) is None:
                object.__setattr__(self, name, rest / open_splits)

    @property
    def names(self) -> tuple[str, ...]:
        """Those with a share."""
        return tuple(name for name in SPLITS if getattr(self, name) > 0)

    def _drawn(self, key: str) -> str:
        """A split by the hash of `key` alone: the same in every run, whatever other rows there are."""
        position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) / (1 << 48)
        passed = 0.0
        for name in self.names:
            passed += getattr(self, name)
            if position < passed:
                return name
        return self.names[-1]  # the shares' sum may be a rounding error below 1


@dataclass(frozen=True)
class ByHash(_Shares):
    """Shares of the rows, drawn by event id: `ByHash(train=0.8, validation=0.1, test=0.1)`, or without validation
    `ByHash(train=0.8, test=0.2)`. A row's split stays whatever is added later."""

    @property
    def column(self) -> None:
        """None."""
        return None

    @property
    def grouped(self) -> bool:
        """No."""
        return False

    def split_of(self, event_id: str, value: Any) -> str:
        """By the hash of the event id."""
        return self._drawn(event_id)


@dataclass(frozen=True)
class ByGroup(_Shares):
    """Shares of the groups: `ByGroup("engine", train=0.7, validation=0.1, test=0.2)` keeps each engine's rows together.

    The shares are of groups, not of rows. A row without a group goes to quarantine.
    """

    column: str = field(kw_only=False)

    @property
    def grouped(self) -> bool:
        """Yes."""
        return True

    def split_of(self, event_id: str, value: Any) -> str:
        """By the hash of the group."""
        if value is None:
            raise ValueError(f"it has no {self.column!r}, by which the splits are made")
        return self._drawn(str(value))


Interval = tuple[str, str]
"""ISO dates, or times in UTC where they name no zone; the first is in it, the last is not."""


@dataclass(frozen=True)
class ByTime:
    """Intervals of time: `ByTime("seen_at", train=("2018-07-25", "2018-08-01"), test=("2018-08-01", "2018-09-01"))`.

    Rows outside are counted and left out; a row without a time goes to quarantine.
    """

    column: str
    _: KW_ONLY
    train: Interval
    test: Interval
    validation: Interval | None = None

    def __post_init__(self) -> None:
        try:
            spans = sorted(self._spans.values())
        except ValueError as exc:
            raise ConfigurationError(f"an interval of {self!r} is none: {exc}", "write ISO dates: 2018-07-25") from exc
        if any(begin >= end for begin, end in spans) or any(a[1] > b[0] for a, b in pairwise(spans)):
            raise ConfigurationError(
                f"the intervals of {self!r} overlap, or end before they begin", "divide the time between the splits"
            )

    @cached_property
    def _spans(self) -> dict[str, tuple[datetime, datetime]]:
        intervals = {TRAIN: self.train, VALIDATION: self.validation, TEST: self.test}
        return {name: (moment(span[0]), moment(span[1])) for name, span in intervals.items() if span is not None}

    @property
    def grouped(self) -> bool:
        """No."""
        return False

    @property
    def names(self) -> tuple[str, ...]:
        """Those with an interval."""
        return tuple(self._spans)

    def split_of(self, event_id: str, value: Any) -> str | None:
        """The interval that the time lies in. Raises: ValueError for what is no time."""
        at = moment(value)
        return next((name for name, (begin, end) in self._spans.items() if begin <= at < end), None)


def moment(value: Any) -> datetime:
    """A time in UTC, of a datetime, a date, or a text in ISO 8601; UTC where it names no zone. Raises: ValueError."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value.strip())
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError(f"{value!r} is no time")  # noqa: TRY004  what a user's data may hold is a bad value
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def split_names(sources: Sequence[AnySource], splits: Splits) -> tuple[str, ...]:
    """The splits that sources and rule make, train first.

    Raises: ConfigurationError when train or test is not among them, or a source that must name a split does not.
    """
    pinned = {getattr(source, "split", None) for source in sources}
    if None in pinned and not splits.names:
        unnamed = next(source for source in sources if getattr(source, "split", None) is None)
        raise ConfigurationError(
            f"the source {', '.join(unnamed.paths)} names no split", "give it split='train', or the application splits"
        )
    made = pinned | (set(splits.names) if None in pinned else set())
    if missing := [split for split in (TRAIN, TEST) if split not in made]:
        raise ConfigurationError(
            f"no source is for the split {missing[0]!r}", "name one in the application's sources, or set its splits"
        )
    return tuple(split for split in SPLITS if split in made)


def content_id(payload: Mapping[str, Any], label: str | None, occurred_at: datetime | None = None) -> str:
    """The event id of a row that brings none: 32 hex digits that follow from its content, wherever it came from.

    payload: checked values by field; times and dates count as their text. occurred_at: where a source names a column
    for it; readings that differ in their time alone are two.
    """
    digest = hashlib.sha256()
    content = {**payload, "\0label": label, "\0occurred_at": occurred_at and occurred_at.isoformat()}
    for name in sorted(content):
        value = content[name]
        plain = value if isinstance(value, bytes) else _as_json(value).encode()
        digest.update(f"{name}\0{type(value).__name__}\0{len(plain)}\0".encode() + plain)
    return digest.hexdigest()[:32]


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
