"""Splits: how an application's labelled rows are divided into those to learn from and those to be judged by.

    class Sentiment(Application):
        splits = ByHash(train=0.8, validation=0.1, test=0.1)

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
import re
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from itertools import pairwise
from numbers import Real
from typing import Any, Protocol

from deeplambda.errors import ConfigurationError

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
RECENT = "recent"
"""The split of the newest labelled events, whatever an application's rule: the version that it judges never learns from
it, and in the next data set they are rows like others."""


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
        return self._drawn(group_text(value))


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


WHOLE_NUMBER = r"^(-?\d+)\.0$"


def group_text(value: Any) -> str:
    """What tells groups apart, whichever type a file has for them: 5, 5.0 and "5.0" are one."""
    if (isinstance(value, float) and value.is_integer()) or (
        isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value()
    ):
        return str(int(value))
    return re.sub(WHOLE_NUMBER, r"\1", str(value))


MILLISECONDS_FROM = 2e10
"""A larger number is a time in milliseconds, a smaller one in seconds."""
DIGITS, SECONDS_OR_MILLISECONDS, DAY = r"[+-]?\d+(\.\d*)?", r"\d{9,13}(\.\d*)?", r"\d{8}"
"""Texts of digits alone; those of them that are a number of seconds or milliseconds; and 20240131. Any other one may be
a year, or a day with its hour, and is no time."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(value: Any) -> datetime:
    """A time in UTC, of a datetime, a date, a text in ISO 8601, or a number of seconds or milliseconds since 1970; UTC
    where it names no zone. Raises: ValueError."""
    if isinstance(value, str):
        text = value.strip()
        if not re.fullmatch(DIGITS, text) or re.fullmatch(DAY, text):
            value = datetime.fromisoformat(text)
        elif re.fullmatch(SECONDS_OR_MILLISECONDS, text):
            value = float(text)
    if isinstance(value, (Real, Decimal)) and not isinstance(value, bool):
        number = float(value)
        unit = "milliseconds" if abs(number) > MILLISECONDS_FROM else "seconds"
        try:
            value = _EPOCH + timedelta(**{unit: number})
        except OverflowError as exc:
            raise ValueError(f"{value!r} is no time") from exc
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError(f"{value!r} is no time")  # noqa: TRY004  what a user's data may hold is a bad value
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
