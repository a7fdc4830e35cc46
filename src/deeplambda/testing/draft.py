"""A first application.py, drafted after a sample of data: it runs as it is, and its comments say what is to be decided.

Columns become fields by their type: numbers are standardised, words of few values and texts get ids, and one small
model takes all of them. Each guess stands in the draft beside a comment that begins with DECIDE.
"""

import json
import keyword
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

from deeplambda.application import Event
from deeplambda.errors import BadInput, ConfigurationError
from deeplambda.loading import APPLICATION_NAME
from deeplambda.testing.checker import RESERVED
from deeplambda.testing.draft_templates import BLOCKS, IMAGES, TABLE
from deeplambda.testing.sample import UNREAD, csv_rows, evenly, lines, parquet_rows

_ROWS = 2000
_IMAGE_ENDINGS = {".png", ".jpg", ".jpeg"}
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
_MOST_CLASSES = 50
_FEW_VALUES = 50
_TEXT_WORDS = 3.0
_OPTIONAL = " | None = None"

Role = Literal["number", "flag", "category", "text", "unused"]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """file: what was written. summary: what was seen in the sample. decisions: comments that begin with DECIDE."""

    file: Path
    summary: str
    decisions: int


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
    splits: str = "ByHash(train=0.8, validation=0.1, test=0.1)"
    dropped: list[str] = field(default_factory=list)


def write_draft(name: str, sample: Path, applications_dir: Path) -> Draft:
    """Write `<applications_dir>/<name>/application.py`. sample: a file of rows, or a folder of files or of images.

    Raises: ConfigurationError for a name that cannot be one, or a file that is there already; BadInput for a sample
    that nothing can be made of.
    """
    if not APPLICATION_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be an application's name", "take lower-case letters, digits and underscores, 40 at most"
        )
    file = applications_dir / name / "application.py"
    if file.exists():
        raise ConfigurationError(f"{file} is there already", "choose another name, or remove it")
    text, summary = _drafted(name, sample)
    try:
        content = text.encode()
    except UnicodeEncodeError as exc:
        raise BadInput("a file's name is no UTF-8", "rename it") from exc
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return Draft(file=file, summary=summary, decisions=text.count("# DECIDE"))


def _drafted(name: str, sample: Path) -> tuple[str, str]:
    root = sample if sample.is_dir() else sample.parent
    files = [path for path in sorted(sample.rglob("*")) if _is_data(path)] if sample.is_dir() else [sample]
    if not files:
        raise BadInput(f"{sample} has no files", "give a file, or a folder of files or images")
    if all(path.suffix.lower() in _IMAGE_ENDINGS for path in files):
        return _of_images(name, root, files)
    return _of_table(name, _table(root, files))


def _is_data(path: Path) -> bool:
    return path.is_file() and not path.name.startswith((".", "_"))


def _of_images(name: str, root: Path, files: Sequence[Path]) -> tuple[str, str]:
    parts = [path.relative_to(root).parts for path in files]
    if any(len(each) < 2 for each in parts):
        raise BadInput(f"{root} has images outside folders", "put the images of each label in a folder of its name")
    splits = {each[0] for each in parts} & {"train", "validation", "test"}
    by_source = {"train", "test"} <= splits and all(len(each) == 3 for each in parts)
    labels = sorted({each[1 if by_source else 0] for each in parts})
    sources = [f'Images("{split}/", split="{split}")' for split in sorted(splits)] if by_source else ['Images("*/*")']
    text = IMAGES.format(
        title=_title(name),
        name=name,
        folder=root.name,
        sources=_tuple(sources),
        splits="" if by_source else f"    # {_SPLIT_DECISION}\n    splits = {Table(sources=[], readers=[]).splits}\n",
        imports="Images" if by_source else "ByHash, Images",
        classes=_tuple([_quoted(label) for label in labels]),
        outputs=len(labels),
    )
    return text, f"{len(files):,} images of {len(labels)} labels"


_SPLIT_DECISION = "DECIDE: ByGroup where rows belong together, ByTime where they age"


def _table(root: Path, files: Sequence[Path]) -> Table:
    """The files' rows: of one kind, by the ending of their names."""
    kinds = {_kind(path) for path in files}
    if len(kinds) > 1:
        raise BadInput(f"{root} has files of several kinds: {', '.join(sorted(kinds))}", "give a folder with one kind")
    kind = kinds.pop()
    if kind == "Lines":
        return _lines(root, files)
    rows = [row for path in files for row in islice(_rows(kind, path), max(1, _ROWS // len(files)))]
    if not rows:
        raise BadInput(f"{files[0]} has no rows", "give a sample with some")
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in rows[0]}
    table = Table(sources=[], readers=[kind])
    table.label = _label(columns)
    table.labels = [_as_label(value) for value in columns[table.label] if value not in (None, "")]
    event_id, time = _unique(columns, table.label), _time(columns, table.label)
    for name, values in columns.items():
        if name in (table.label, event_id, time):
            continue
        column = _column(name, values, len(table.columns))
        if column is None:
            table.dropped.append(name)
        elif column.field in {each.field for each in table.columns}:
            table.columns.append(replace(column, field=f"{column.field}_{len(table.columns)}"))
        else:
            table.columns.append(column)
    named = {each.field: each.name for each in table.columns if each.field != each.name}
    arguments = [f"columns={_quoted(named)}"] if named else []
    arguments += [
        f"{key}={_quoted(value)}"
        for key, value in (("label", table.label), ("event_id", event_id), ("occurred_at", time))
        if value
    ]
    if kind == "Csv" and (separator := _separator(files[0])) != ",":
        arguments.append(f"separator={json.dumps(separator)}")
    if kind == "Csv" and any("\n" in value for row in rows for value in row.values()):
        arguments.append("multiline=True")
    splits = {path.name.partition(".")[0]: path for path in files}
    by_source = {"train", "test"} <= set(splits) <= {"train", "validation", "test"}
    for name in sorted(path.relative_to(root).as_posix() for path in files) if by_source else _globs(root, files):
        split = [f'split="{Path(name).name.partition(".")[0]}"'] if by_source else []
        table.sources.append(f"{kind}({', '.join([_quoted(name), *arguments, *split])})")
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
    if kind == "Parquet":
        return parquet_rows(path, _ROWS)
    if kind == "Csv":
        return evenly((row for row in csv_rows(path, _separator(path), multiline=True) if UNREAD not in row), _ROWS)
    return evenly((_object(line, path) for line in lines(path) if line.strip()), _ROWS)


def _object(line: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as exc:
        raise BadInput(f"a line of {path} is no JSON: {exc}", "give one JSON object a line") from exc
    if not isinstance(found, dict):
        raise BadInput(f"a line of {path} is no JSON object", "give one JSON object a line")
    return found


def _separator(path: Path) -> str:
    first = next(lines(path), "")
    return max((",", ";", "\t", "|"), key=first.count)


def _lines(root: Path, files: Sequence[Path]) -> Table:
    if len(files) < 2:
        raise BadInput(
            f"{files[0]} is text without labels", "give a folder with a file for each label, or a table with both"
        )
    stems = [path.name.removesuffix(".gz").partition(".")[0] for path in files]
    endings = [path.name.removesuffix(".gz").rpartition(".")[2] for path in files]
    labels = stems if len(set(stems)) == len(files) else endings
    sources = [
        f'Lines({_quoted(path.relative_to(root).as_posix())}, column="text", label={_quoted(label)})'
        for path, label in zip(files, labels, strict=True)
    ]
    text = Column(name="text", field="text", role="text", optional=False)
    return Table(sources=sources, readers=["Lines"], columns=[text], label="the file", labels=sorted(set(labels)))


def _label(columns: dict[str, list[Any]]) -> str:
    """A column with a label's name; else the last, if it has numbers or few values; else the last that has few."""
    lowered = {name.lower(): name for name in columns}
    for wanted in _LABEL_NAMES:
        for low, name in lowered.items():
            if low == wanted or low.endswith((f"_{wanted}", f" {wanted}")):
                return name
    few = [name for name, values in columns.items() if 1 < len({str(value) for value in values}) <= 20]
    last = list(columns)[-1]
    return last if not few or all(_is_number(value) for value in columns[last]) else few[-1]


def _as_label(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unique(columns: dict[str, list[Any]], label: str) -> str | None:
    for name, values in columns.items():
        if (
            name != label
            and re.fullmatch(r"(?i)(.*[_ ])?(id|uuid|key)", name)
            and len(set(map(str, values))) == len(values)
        ):
            return name
    return None


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


def _column(name: str, values: list[Any], number: int) -> Column | None:
    """The field of a column; None for one whose type is for the author to think about."""
    there = [value for value in values if value not in (None, "")]
    optional = len(there) < len(values)
    role: Role
    if not there:
        return None
    if all(isinstance(value, bool) or str(value).lower() in ("true", "false") for value in there):
        role = "flag"
    elif all(_is_number(value) for value in there):
        role = "number"
    elif all(isinstance(value, str) for value in there):
        distinct = len(set(there))
        words = sum(len(value.split()) for value in there) / len(there)
        role = (
            "category"
            if distinct <= _FEW_VALUES and distinct < max(2, 0.5 * len(there))
            else "text"
            if words >= _TEXT_WORDS
            else "unused"
        )
        if role == "unused" and distinct <= _FEW_VALUES:
            role = "category"
    else:
        return None
    return Column(name=name, field=_field_name(name, number), role=role, optional=optional)


def _is_number(value: Any) -> bool:
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
    if keyword.iskeyword(plain) or plain.lower() in (*RESERVED, "event_id", "occurred_at") or hasattr(Event, plain):
        return f"{plain}_value" if plain == plain.lower() else f"{plain.lower()}_value"
    return plain


def _of_table(name: str, table: Table) -> tuple[str, str]:
    by_role: dict[str, list[Column]] = {}
    for column in table.columns:
        by_role.setdefault(column.role, []).append(column)
    numbers = [*by_role.get("number", []), *by_role.get("flag", [])]
    categories, texts = by_role.get("category", []), by_role.get("text", [])
    if not (numbers or categories or texts):
        raise BadInput("no column of the sample can be a feature", "give a sample with numbers, categories or texts")
    objective, outputs, metrics, judged = _objective(table)
    result, label_constants = "self.layers(torch.cat(parts, dim=1))", ""
    if outputs == 1:
        values = [float(value) for value in table.labels]
        label_constants = f"MEAN, SPREAD = {fmean(values):.4g}, {pstdev(values):.4g}  # of the sample's labels\n"
        result = f"MEAN + SPREAD * {result}"
    places = {
        kind: _tuple([_quoted(each.field) for each in columns], indent=4)
        for kind, columns in (("numbers", numbers), ("categories", categories), ("texts", texts))
    }
    kinds = [kind for kind, there in (("numbers", numbers), ("categories", categories), ("texts", texts)) if there]
    needs = {"numbers": "Standardization", "categories": "Categories", "texts": "Vocabulary"}
    names = ", ".join(map(_quoted, table.dropped))  # quoted: what is in a name must not become code
    dropped = f"    # DECIDE: left out, for their type takes thought: {names}\n" if names else ""
    text = TABLE.format(
        title=_title(name),
        name=name,
        fields="\n".join(_field(column) for column in table.columns),
        dropped=dropped,
        sources=_tuple(table.sources),
        splits=f"    # {_SPLIT_DECISION}\n    splits = {table.splits}\n" if table.splits else "",
        imports=", ".join(sorted([*table.readers, *(["ByHash"] if table.splits else [])])),
        learned_imports=", ".join(sorted(needs[kind] for kind in kinds)),
        label=_quoted(table.label),
        objective=objective,
        objective_class=objective.partition("(")[0],
        metrics=metrics,
        judged=judged,
        outputs=outputs,
        result=result,
        label_constants=label_constants,
        arguments=", ".join(kinds),
        **{place: "".join(blocks[kind].format(**places) for kind in kinds) for place, blocks in BLOCKS.items()},
    )
    seen = Counter(column.role for column in table.columns)
    described = ", ".join(f"{count} {role}" for role, count in seen.items())
    return text, f"fields: {described}; the label is taken to be {_quoted(table.label)}"


def _field(column: Column) -> str:
    kinds = {"number": "float", "flag": "bool"}
    unused = "  # DECIDE: kept and not used; nearly every row has another" if column.role == "unused" else ""
    return f"    {column.field}: {kinds.get(column.role, 'str')}{_OPTIONAL if column.optional else ''}{unused}"


def _objective(table: Table) -> tuple[str, int, str, str]:
    """Source text of objective and metrics, and how many outputs the model has."""
    distinct = sorted(set(table.labels))
    if len(distinct) > 20 and all(_is_number(value) for value in distinct):
        return "Regression()", 1, '("rmse", "mae")', "lower is better"
    if not 2 <= len(distinct) <= _MOST_CLASSES:
        raise BadInput(
            f"the label is taken to be {table.label!r}, which has {len(distinct)} values in the sample",
            "name the column that is the label 'label', and give a sample with 2 to 50 classes, or numbers",
        )
    classes = _tuple([_quoted(value) for value in distinct])
    return f"Classification({classes})", len(distinct), '("accuracy", "log_loss")', "the first decides"


def _quoted(value: Any) -> str:
    """Source text of a text, or of texts by name."""
    return json.dumps(value, ensure_ascii=False)


def _title(name: str) -> str:
    """The name as a class has it; one that Python or the draft itself uses gets a word behind it."""
    title = "".join(word.capitalize() for word in name.split("_"))
    taken = keyword.iskeyword(title) or title in _NAMES_IN_DRAFTS
    return f"{title}Application" if taken else title


_NAMES_IN_DRAFTS = frozenset(re.findall(r"\b[A-Z]\w*", TABLE + IMAGES)) | {
    *("Standardization", "Categories", "Vocabulary", "ByHash", "Csv", "JsonLines", "Parquet", "Lines")
}


def _tuple(items: Sequence[str], indent: int = 8) -> str:
    """Source text of a tuple, over several lines when it is long."""
    if sum(map(len, items)) < 70:
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    return "(\n" + "".join(f"{' ' * indent}{item},\n" for item in items) + f"{' ' * (indent - 4)})"
