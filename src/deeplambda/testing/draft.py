"""A first application.py, drafted after a sample of data: it runs as it is, and its comments say what is to be decided.

Columns become fields by their type: numbers are standardised, words of few values and texts get ids, and one small
model takes all of them. Each guess stands in the draft beside a comment that begins with DECIDE.
"""

import keyword
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev

from deeplambda.errors import BadInput, ConfigurationError
from deeplambda.loading import APPLICATION_NAME
from deeplambda.sources import is_hidden, names_below
from deeplambda.testing.draft_table import MOST_CLASSES, Column, Table, folders_of_labels, is_number, read_table
from deeplambda.testing.draft_templates import BLOCKS, IMAGES, TABLE, quoted

_IMAGE_ENDINGS = {".png", ".jpg", ".jpeg"}
_SPLIT_DECISION = "DECIDE: ByGroup where rows belong together, ByTime where they age"
_OPTIONAL = " | None = None"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """file: what was written. summary: what was seen in the sample. decisions: comments that begin with DECIDE."""

    file: Path
    summary: str
    decisions: int


def write_draft(name: str, sample: Path, applications_dir: Path, label: str | None = None) -> Draft:
    """Write `<applications_dir>/<name>/application.py`. sample: a file of rows, or a folder of files or of images.
    label: the column of it, where the rows are of a table.

    Raises: ConfigurationError for a name that cannot be one, or a file that is there already; BadInput for a sample
    that nothing can be made of, or without that column.
    """
    if not APPLICATION_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be an application's name", "take lower-case letters, digits and underscores, 40 at most"
        )
    file = applications_dir / name / "application.py"
    if file.exists():
        raise ConfigurationError(f"{file} is there already", "choose another name, or remove it")
    text, summary = _drafted(name, sample, label)
    try:
        content = text.encode()
    except UnicodeEncodeError as exc:
        raise BadInput("a file's name is no UTF-8", "rename it") from exc
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as exc:
        raise ConfigurationError(
            f"{file} cannot be written: {exc.strerror}", "set DEEPLAMBDA_APPLICATIONS_DIR to a folder of yours"
        ) from exc
    return Draft(file=file, summary=summary, decisions=text.count("# DECIDE"))


def _drafted(name: str, sample: Path, label: str | None) -> tuple[str, str]:
    root = sample if sample.is_dir() else sample.parent
    files = [sample]
    if sample.is_dir():
        files = [sample / name for name in names_below(sample) if not is_hidden(name)]
    if not files:
        raise BadInput(f"{sample} has no files", "give a file, or a folder of files or images")
    others = [path for path in files if path.suffix.lower() not in _IMAGE_ENDINGS]
    if 0 < len(others) < len(files):
        shown = ", ".join(str(path.relative_to(root)) for path in others[:3])
        raise BadInput(f"{sample} has images and other files: {shown}", "give a folder with one kind")
    if not others:
        if label is not None:
            raise BadInput(
                f"images have no column {label!r}", "leave out --label: an image's label is its folder's name"
            )
        return _of_images(name, root, files)
    return _of_table(name, read_table(root, files, label))


def _of_images(name: str, root: Path, files: Sequence[Path]) -> tuple[str, str]:
    found = folders_of_labels(root, files)
    if found is None:
        raise BadInput(f"{root} has images outside folders", "put the images of each label in a folder of its name")
    splits, labels = found
    by_source = bool(splits)
    sources = [f'Images("{split}/", split="{split}")' for split in splits] if by_source else ['Images("*/*")']
    text = IMAGES.format(
        title=_title(name),
        name=name,
        folder=root.name,
        sources=_tuple(sources),
        splits="" if by_source else f"    # {_SPLIT_DECISION}\n    splits = {Table(sources=[], readers=[]).splits}\n",
        imports="Images" if by_source else "ByHash, Images",
        classes=_tuple([quoted(label) for label in labels]),
        outputs=len(labels),
    )
    return text, f"{len(files):,} images of {len(labels)} labels"


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
        kind: _tuple([quoted(each.field) for each in columns], indent=4)
        for kind, columns in (("numbers", numbers), ("categories", categories), ("texts", texts))
    }
    kinds = [kind for kind, there in (("numbers", numbers), ("categories", categories), ("texts", texts)) if there]
    needs = {"numbers": "Standardization", "categories": "Categories", "texts": "Vocabulary"}
    names = ", ".join(map(quoted, table.dropped))  # quoted: what is in a name must not become code
    dropped = f"    # DECIDE: left out, for their type takes thought: {names}\n" if names else ""
    corrects = f"{quoted(table.event_id)} as event id: of rows with one id, the last corrects the others"
    identified = f"    # DECIDE: {corrects}\n" if table.event_id else ""
    text = TABLE.format(
        title=_title(name),
        name=name,
        fields="\n".join(_field(column) for column in table.columns),
        dropped=dropped,
        identified=identified,
        sources=_tuple(table.sources),
        splits=f"    # {_SPLIT_DECISION}\n    splits = {table.splits}\n" if table.splits else "",
        imports=", ".join(sorted([*table.readers, *(["ByHash"] if table.splits else [])])),
        learned_imports=", ".join(sorted(needs[kind] for kind in kinds)),
        label=quoted(table.label),
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
    return text, f"fields: {described}; the label is taken to be {quoted(table.label)}"


def _field(column: Column) -> str:
    kinds = {"number": "float", "flag": "bool"}
    decision = "  # DECIDE: kept and not used; it is an id, or nearly another in each row"
    unused = decision if column.role == "unused" else ""
    return f"    {column.field}: {kinds.get(column.role, 'str')}{_OPTIONAL if column.optional else ''}{unused}"


def _objective(table: Table) -> tuple[str, int, str, str]:
    """Source text of objective and metrics, and how many outputs the model has."""
    distinct = sorted(set(table.labels))
    if len(distinct) > 20 and all(is_number(value) for value in distinct):
        return "Regression()", 1, '("rmse", "mae")', "lower is better"
    if not 2 <= len(distinct) <= MOST_CLASSES:
        raise BadInput(
            f"the label is taken to be {table.label!r}, which has {len(distinct)} values in the sample",
            "name the label's column as --label, and give a sample with 2 to 50 classes, or numbers",
        )
    classes = _tuple([quoted(value) for value in distinct])
    return f"Classification({classes})", len(distinct), '("accuracy", "log_loss")', "the first decides"


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
