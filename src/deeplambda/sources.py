"""Sources: where an application's labelled rows come from.

An application names sources, and a rule for splits where each source does not name its own. It imports both from here;
the rules are told of in `deeplambda.splits`.

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
up anew at each ingest, which reads what was added since the last one, or all where anything else has changed. Names
that end in `.gz` are inflated. An object may serve several sources.

Each row is checked against the event's schema. One that cannot be read or breaks the schema goes to
`lake.<application>.quarantine` with its reason and its original; the rows around it are kept. A row whose label is
missing is kept without one, and training passes it over. A row whose event id was there with other content is a
correction: both are kept, and the newest counts. Of several rows of one id the last counts, by the object's name and
the place in it, whichever ingest read them.
"""

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from deeplambda.errors import ConfigurationError
from deeplambda.splits import SPLITS, TEST, TRAIN, Splits
from deeplambda.splits import ByGroup as ByGroup  # applications import sources and rules from here
from deeplambda.splits import ByHash as ByHash
from deeplambda.splits import BySource as BySource
from deeplambda.splits import ByTime as ByTime

_CHARSETS: Mapping[str, str] = {
    "utf-8": "UTF-8",
    **{f"utf-{bits}{order}": f"UTF-{bits}{order[-2:].upper()}" for bits in (16, 32) for order in ("", "-le", "-be")},
    "ascii": "US-ASCII",
    **{f"iso8859-{part}": f"ISO-8859-{part}" for part in (*range(1, 10), 13, 15)},
    **{f"cp{page}": f"windows-{page}" for page in range(1250, 1259)},
    **{f"cp{page}": f"IBM{page}" for page in (437, 850, 852, 855, 857, 862, 866)},
    "cp874": "x-windows-874",
    "cp932": "windows-31j",
    "cp949": "x-windows-949",
    "cp950": "x-windows-950",
    "big5": "Big5",
    "euc_jp": "EUC-JP",
    "euc_kr": "EUC-KR",
    "gb18030": "GB18030",
    "gb2312": "GB2312",
    "gbk": "GBK",
    "koi8-r": "KOI8-R",
    "koi8-u": "KOI8-U",
    "mac-roman": "x-MacRoman",
    "shift_jis": "Shift_JIS",
}
"""Of a CSV: Python's name of each, and Java's, which calls other code pages by Python's names."""
_REPLACED = "\ufffd"
"""What a decoder puts in the place of bytes that are no text."""

TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")
"""What a cell says of a truth value, in upper or lower case."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Raw objects that are read together: for MNIST, a file of images and the file of their labels.

    A prefix or a glob as the only one stands for a source for each object that it means: `Source(objects=("days/",))`.
    """

    objects: tuple[str, ...]
    split: str | None = None

    def __post_init__(self) -> None:
        _check_split(self.split)
        for name in self.objects:
            _check_path(name)
            if len(self.objects) > 1 and _is_many(name):
                raise ConfigurationError(
                    f"a Source has the object {name!r} beside others",
                    "name each object of those that are read together, or give the prefix or glob alone",
                )

    @property
    def paths(self) -> tuple[str, ...]:
        """What is matched with the names of objects."""
        return self.objects

    def read_together(self, names: Iterable[str]) -> "list[Source]":
        """The sources that `examples` gets. names: of the raw objects, among which a prefix or glob is looked up."""
        if not _is_many(self.objects[0]):
            return [self]
        return [replace(self, objects=(name,)) for name in matched(self.objects[0], names)]


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

    separator: between cells. header: whether the first line of each file names its columns; else they are `_c0`, `_c1`,
    … multiline: whether a quoted cell may go on in the next line; each file is then read whole, by one task. encoding:
    of the text, as Python calls it, such as "cp1252"; UTF-16 and UTF-32 with `multiline` alone. errors: "replace" keeps
    a row that has signs in place of what was not in that encoding; "strict" refuses it.
    """

    _: KW_ONLY
    separator: str = ","
    header: bool = True
    multiline: bool = False
    encoding: str = "utf-8"
    errors: Literal["strict", "replace"] = "strict"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            charset = self.charset
        except LookupError as exc:
            raise ConfigurationError(
                f"Csv({self.path!r}) has the encoding {self.encoding!r}, which is not read",
                f"take one of {', '.join(_CHARSETS)}, or write the file in UTF-8",
            ) from exc
        if charset.startswith(("UTF-16", "UTF-32")) and not self.multiline:
            raise ConfigurationError(
                f"Csv({self.path!r}) is in {self.encoding}, whose lines cannot be told in a part of a file",
                "give it multiline=True",
            )

    @property
    def codec(self) -> str:
        """The encoding in Python's registry: for UTF-8 the one that passes over a byte-order mark."""
        name = codecs.lookup(self.encoding).name
        return "utf-8-sig" if name == "utf-8" else name

    @property
    def charset(self) -> str:
        """Java's name of the encoding. Raises: LookupError for one that is not read."""
        return _CHARSETS[codecs.lookup(self.encoding).name]


@dataclass(frozen=True)
class JsonLines(Table):
    """One JSON object a line: `JsonLines("clicks/*.jsonl.gz", label="bought", event_id="id")`."""


@dataclass(frozen=True)
class Parquet(Table):
    """Parquet files, each with columns of its own: `Parquet("2018-*.parquet", columns={"amount": "TX_AMOUNT"})`."""


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


def check_decoded(source: AnySource, values: Iterable[Any]) -> None:
    """Raises: ValueError for a text of a CSV that was not in the source's encoding."""
    if isinstance(source, Csv) and source.errors == "strict":
        for value in values:
            if isinstance(value, str) and _REPLACED in value:
                raise ValueError(
                    f"it has U+FFFD, which stands for what is no {source.encoding}: give Csv the file's encoding, or "
                    "errors='replace' where the file itself has that sign"
                )


def matches(path: str, name: str) -> bool:
    """Whether a source's path means the object `name`; both are relative to `<application>/raw/`."""
    if path.endswith("/"):
        return name.startswith(path) and not is_hidden(name.removeprefix(path))
    if not _is_glob(path):
        return name == path
    patterns, steps = path.split("/"), name.split("/")
    return (
        len(patterns) == len(steps)
        and all(fnmatchcase(step, pattern) for pattern, step in zip(patterns, steps, strict=True))
        and not any(is_hidden(step) for pattern, step in zip(patterns, steps, strict=True) if _is_glob(pattern))
    )


def matched(path: str, names: Iterable[str]) -> list[str]:
    """Which of the names a source's path means, sorted."""
    return sorted(name for name in names if matches(path, name))


def names_below(folder: Path) -> list[str]:
    """Paths of the files in a folder, relative to it, sorted; what lies in folders like `.git` is left out."""
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".")]
        names += [Path(place, each).relative_to(folder).as_posix() for each in files]
    return sorted(names)


def _is_glob(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _is_many(path: str) -> bool:
    return path.endswith("/") or _is_glob(path)


def is_hidden(name: str) -> bool:
    """Whether a step of the path begins with a dot or an underscore, as what tools leave beside data does."""
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

    payload: checked values by field; times and dates count as their text, and a field that is None does not count, so
    a further optional field leaves ids as they were. occurred_at: where a source names a column for it; readings that
    differ in their time alone are two.
    """
    digest = hashlib.sha256()
    content = {**_present(payload), "\0label": label, "\0occurred_at": occurred_at and occurred_at.isoformat()}
    for name in sorted(content):
        value = content[name]
        plain = value if isinstance(value, bytes) else _as_json(value).encode()
        digest.update(f"{name}\0{type(value).__name__}\0{len(plain)}\0".encode() + plain)
    return digest.hexdigest()[:32]


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _present(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None
    }


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
