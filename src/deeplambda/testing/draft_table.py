"""What a sample of rows shows: the columns as fields of the event, the label, and the sources it would be read by."""

import json
import keyword
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from deeplambda.application import LAKE_COLUMNS, Event
from deeplambda.errors import BadInput
from deeplambda.learned import SPACELESS
from deeplambda.testing.draft_templates import quoted
from deeplambda.testing.sample import MOST_IDS, UNREAD, csv_rows, each_parquet_row, evenly, lines, parquet_rows

_ROWS = 2000
_LABEL_NAMES = (
    "label",
    "target",
    "class",
    "y",
    "answer",
    "outcome",
    "category",
    "species",
    "fraud",
    "survived",
    "churn",
)
_TIME_NAME = re.compile(r"(?i).*(time|timestamp|date|datetime)|(.*[_ ])?(at|when|ts)")
_ID_NAME = re.compile(r"(?i:.*[_ ])?(?i:id|uuid|key)|.*[a-z0-9](Id|ID|Uuid|UUID|Key)")
_CODE_NAME = re.compile(r"(?i)index|row|unnamed: \d+|(.*[_ ])?(zip|zipcode|zip code|postcode|postal code)|")
_EXACT = 2**53
"""A float holds whole numbers to here."""
MOST_CLASSES = 50
_FEW_VALUES = 50
_TEXT_WORDS = 3.0
_WINDOWS = "cp1252"

Role = Literal["number", "flag", "category", "text", "unused"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the sample as a field of the event. optional: some rows have none."""

    name: str
    field: str
    role: Role
    optional: bool


@dataclass(kw_only=True)
class Table:
    """What a sample of rows shows. sources: source text of the sources; splits: of the rule, empty for `BySource`."""

    sources: list[str]
    readers: list[str]
    columns: list[Column] = field(default_factory=list)
    label: str | None = None
    labels: list[str] = field(default_factory=list)
    event_id: str | None = None
    splits: str = "ByHash(train=0.8, validation=0.1, test=0.1)"
    dropped: list[str] = field(default_factory=list)


def read_table(root: Path, files: Sequence[Path], label: str | None = None) -> Table:
    """The files' rows: of one kind, by the ending of their names. label: the column of it, by default a guess.

    Raises: BadInput.
    """
    kinds = {_kind(path) for path in files}
    if len(kinds) > 1:
        raise BadInput(f"{root} has files of several kinds: {', '.join(sorted(kinds))}", "give a folder with one kind")
    kind = kinds.pop()
    if kind == "Lines":
        if label is not None:
            raise BadInput(f"text has no column {label!r}", "leave out --label: a text's label is its file's name")
        return _lines(root, files)
    rows = [row for path in files for row in islice(_rows(kind, path), max(1, _ROWS // len(files)))]
    if not rows:
        raise BadInput(f"{files[0]} has no rows", "give a sample with some")
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in rows[0]}
    table = Table(sources=[], readers=[kind])
    if label is not None and label not in columns:
        raise BadInput(f"the sample has no column {label!r}", f"its columns are {', '.join(columns)}")
    table.label = label or _label(columns)
    table.labels = [_as_label(value) for value in columns[table.label] if value not in (None, "")]
    unique = (name for name in _named_as_ids(columns, table.label) if _is_unique(kind, files, name))
    table.event_id = event_id = next(unique, None)
    time = _time(columns, table.label)
    for name, values in columns.items():
        if name in (table.label, event_id, time):
            continue
        column = _column(name, values, len(table.columns), has_types=kind != "Csv")
        if column is None:
            table.dropped.append(name)
        elif column.field.lower() in {each.field.lower() for each in table.columns}:
            table.columns.append(replace(column, field=f"{column.field}_{len(table.columns)}"))
        else:
            table.columns.append(column)
    named = {each.field: each.name for each in table.columns if each.field != each.name}
    arguments = [f"columns={quoted(named)}"] if named else []
    arguments += [
        f"{key}={quoted(value)}"
        for key, value in (("label", table.label), ("event_id", event_id), ("occurred_at", time))
        if value
    ]
    if kind == "Csv" and (separator := _separator(files[0])) != ",":
        arguments.append(f"separator={json.dumps(separator)}")
    if kind == "Csv" and any(_encoding(path) == _WINDOWS for path in files):
        arguments.append(f"encoding={json.dumps(_WINDOWS)}")
    if kind == "Csv" and any("\n" in value for row in rows for value in row.values()):
        arguments.append("multiline=True")
    splits = {path.name.partition(".")[0]: path for path in files}
    by_source = {"train", "test"} <= set(splits) <= {"train", "validation", "test"}
    for name in sorted(path.relative_to(root).as_posix() for path in files) if by_source else _globs(root, files):
        split = [f'split="{Path(name).name.partition(".")[0]}"'] if by_source else []
        table.sources.append(f"{kind}({', '.join([quoted(name), *arguments, *split])})")
    if by_source:
        table.splits = ""
    return table


def _globs(root: Path, files: Sequence[Path]) -> list[str]:
    """A glob for each folder's files of one ending, where there are several; else the file's name."""
    alike: dict[str, list[str]] = {}
    for path in files:
        ending = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
        name = path.relative_to(root)
        alike.setdefault(name.with_name(f"*{ending}").as_posix(), []).append(name.as_posix())
    return sorted(glob if len(names) > 1 else names[0] for glob, names in alike.items())


def _kind(path: Path) -> str:
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    return {".csv": "Csv", ".tsv": "Csv", ".jsonl": "JsonLines", ".ndjson": "JsonLines", ".json": "JsonLines",
            ".parquet": "Parquet"}.get(ending, "Lines")  # fmt: skip


def _rows(kind: str, path: Path) -> Any:
    return parquet_rows(path, _ROWS) if kind == "Parquet" else evenly(_text_rows(kind, path), _ROWS)


def _text_rows(kind: str, path: Path) -> Iterator[dict[str, Any]]:
    if kind == "Csv":
        rows = csv_rows(path, _separator(path), multiline=True, encoding=_encoding(path))
        return (row for row in rows if UNREAD not in row)
    return (_object(line, path) for line in lines(path) if line.strip())


def _object(line: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as exc:
        raise BadInput(f"a line of {path} is no JSON: {exc}", "give one JSON object a line") from exc
    if not isinstance(found, dict):
        raise BadInput(f"a line of {path} is no JSON object", "give one JSON object a line")
    return found


def _encoding(path: Path) -> str:
    """UTF-8, or where the text is none, what programs for Windows write in Europe and America."""
    return _WINDOWS if any("\ufffd" in line for line in islice(lines(path), _ROWS)) else "utf-8-sig"


def _separator(path: Path) -> str:
    first = next(lines(path), "")
    return max((",", ";", "\t", "|"), key=first.count)


def folders_of_labels(root: Path, files: Sequence[Path]) -> tuple[list[str], list[str]] | None:
    """Splits and labels, where all files are in folders: LABEL/, or SPLIT/LABEL/; no splits in the first case."""
    parts = [path.relative_to(root).parts for path in files]
    if any(len(each) < 2 for each in parts):
        return None
    splits = {each[0] for each in parts} & {"train", "validation", "test"}
    by_source = {"train", "test"} <= splits and all(len(each) == 3 for each in parts)
    return sorted(splits) if by_source else [], sorted({each[1 if by_source else 0] for each in parts})


def _lines(root: Path, files: Sequence[Path]) -> Table:
    for path in files:
        if "\0" in next(lines(path), ""):
            raise BadInput(
                f"{path} is no table, no text, and no PNG or JPEG image",
                "give CSV, JSON lines, Parquet, lines of text, PNG or JPEG",
            )
    if folders := folders_of_labels(root, files):
        splits, labels = folders
        places = [f"{split}/{label}" for split in splits for label in labels] if splits else labels
        named = [(f"{place}/", place.rpartition("/")[2]) for place in places]
    else:
        splits, stems = [], [path.name.removesuffix(".gz").partition(".")[0] for path in files]
        endings = [path.name.removesuffix(".gz").rpartition(".")[2] for path in files]
        by_file = stems if len(set(stems)) == len(files) else endings
        named = [(path.relative_to(root).as_posix(), label) for path, label in zip(files, by_file, strict=True)]
        labels = sorted(set(by_file))
    if not 2 <= len(labels) <= MOST_CLASSES:
        raise BadInput(
            f"{root} has texts of {len(labels)} labels, by the names of folders or files",
            f"put the texts of each label in a folder, or a file, of its name, 2 to {MOST_CLASSES} in all; or give a "
            "table of texts and labels",
        )
    sources = []
    for place, label in named:
        split = f', split="{place.partition("/")[0]}"' if splits else ""
        sources.append(f'Lines({quoted(place)}, column="text", label={quoted(label)}{split})')
    text = Column(name="text", field="text", role="text", optional=False)
    said = f"the name: {', '.join(labels)}"
    table = Table(sources=sources, readers=["Lines"], columns=[text], label=said, labels=labels)
    if splits:
        table.splits = ""
    return table


def _label(columns: dict[str, list[Any]]) -> str:
    """A column with a label's name; else the last, if it has numbers or few values; else the last that has few."""
    lowered = {name.lower(): name for name in columns}
    for wanted in _LABEL_NAMES:
        for low, name in lowered.items():
            if low == wanted or low.endswith((f"_{wanted}", f" {wanted}")):
                return name
    few = [name for name, values in columns.items() if 1 < len({str(value) for value in values}) <= 20]
    last = list(columns)[-1]
    return last if not few or all(is_number(value) for value in columns[last]) else few[-1]


def _as_label(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _named_as_ids(columns: dict[str, list[Any]], label: str) -> list[str]:
    return [name for name in columns if name != label and _ID_NAME.fullmatch(name)]


def _is_unique(kind: str, files: Sequence[Path], name: str) -> bool:
    """Of all rows: an even sample of a panel shows each customer once."""
    seen = set[int]()
    for path in files:
        for row in each_parquet_row(path, [name]) if kind == "Parquet" else _text_rows(kind, path):
            key = hash(str(value)) if (value := row.get(name)) not in (None, "") else None
            if key is None or key in seen:
                return False
            seen.add(key)
            if len(seen) == MOST_IDS:
                return True
    return True


def _time(columns: dict[str, list[Any]], label: str) -> str | None:
    from deeplambda.splits import moment

    for name, values in columns.items():
        if name == label or not _TIME_NAME.fullmatch(name):
            continue
        try:
            for value in values:
                moment(value)
        except ValueError:
            continue
        return name
    return None


def _column(name: str, values: list[Any], number: int, *, has_types: bool) -> Column | None:
    """The field of a column; None for one whose type is for the author to think about. has_types: whether a text is one
    though it has digits, as in JSON, where a field of numbers would refuse it."""
    there = [value for value in values if value not in (None, "")]
    optional = len(there) < len(values)
    role: Role
    if not there:
        return None
    texts = [value for value in there if isinstance(value, str)]
    are_texts = len(texts) == len(there)
    if not (has_types and texts) and all(str(value).lower() in ("true", "false") for value in there):
        role = "flag"
    elif _are_codes(name, there) or (are_texts and (has_types or not all(map(is_number, there)))):
        distinct = len(set(map(str, there)))
        words = sum(_count_words(str(value)) for value in there) / len(there)
        role = (
            "category"
            if distinct <= _FEW_VALUES and distinct < max(2, 0.5 * len(there))
            else "text"
            if words >= _TEXT_WORDS
            else "unused"
        )
        if role == "unused" and distinct <= _FEW_VALUES:
            role = "category"
    elif all(is_number(value) for value in there) and not (has_types and texts):
        role = "number"
    else:
        return None
    return Column(name=name, field=_field_name(name, number), role=role, optional=optional)


def _count_words(text: str) -> float:
    """Of a script without spaces, about two characters are a word."""
    return len(text.split()) + len(SPACELESS.findall(text)) / 2


def _are_codes(name: str, values: list[Any]) -> bool:
    """Whether whole numbers tell things apart and measure nothing: by their name, a leading zero, or their size."""
    if not all(isinstance(value, (str, int)) and re.fullmatch(r"\d+", str(value)) for value in values):
        return False
    is_named = bool(_ID_NAME.fullmatch(name) or _CODE_NAME.fullmatch(name))
    return is_named or any((str(value)[0] == "0" and len(str(value)) > 1) or int(value) > _EXACT for value in values)


def is_number(value: Any) -> bool:
    try:
        return abs(float(value)) < float("inf") and not isinstance(value, bool)
    except (TypeError, ValueError, OverflowError):
        return False


def _field_name(column: str, number: int) -> str:
    """The column's name where it can be a field's; `event_id` and the lake's own columns cannot."""
    letters = unicodedata.normalize("NFKC", column)  # as Python itself reads a name
    plain = re.sub(r"_+", "_", "".join(c if f"_{c}".isidentifier() else "_" for c in letters)).strip("_")
    plain = plain or f"column_{number}"
    if plain[0].isdigit():
        plain = f"column_{plain}"
    if keyword.iskeyword(plain) or plain.lower() in (*LAKE_COLUMNS, "event_id", "occurred_at") or hasattr(Event, plain):
        return f"{plain}_value" if plain == plain.lower() else f"{plain.lower()}_value"
    return plain
