"""Layouts: what each file of a table says of its own columns, asked before Spark reads it.

Files of one source come over the years, and from several programs: a column is added, two change places, times turn
from nanoseconds to microseconds. Spark reads files as one schema says, and takes a number of another unit for what it
is told. So files of one layout are read together, and those of another apart.
"""

import bz2
import csv
import io
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from batch_layer.raw_objects import raw_key
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.errors import BadInput, CorruptObject
from deeplambda.sources import Csv, Table

_ASKED_AT_ONCE = 8
_HEAD_BYTES = 256 << 10
_FOOTER_BYTES = 64 << 10
_MAGIC = b"PAR1"


@dataclass(frozen=True, order=True)
class Layout:
    """columns: of a CSV its names, in their order; of Parquet what is written in each that is wanted.

    nanoseconds: columns of times in that unit, which Spark reads as numbers.
    """

    columns: tuple[str, ...] = ()
    nanoseconds: tuple[str, ...] = ()


def by_layout(
    store: ObjectStore, application: str, reader: Table, names: Iterable[str], wanted: Iterable[str]
) -> dict[Layout, list[str]]:
    """The objects `names` of a source, those of one layout together; a CSV without a line is in none.

    wanted: the columns that are read; others may be as they like. Raises: BadInput, CorruptObject, NotReady.
    """
    columns = frozenset(wanted)

    def of(name: str) -> Layout | None:
        if isinstance(reader, Csv):
            return _of_csv(store, application, reader, columns, name)
        return _of_parquet(store, application, columns, name)

    found: dict[Layout, list[str]] = {}
    names = list(names)
    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="layout") as executor:
        for name, layout in zip(names, executor.map(of, names), strict=True):
            if layout is not None:
                found.setdefault(layout, []).append(name)
    return found


def _of_csv(store: ObjectStore, application: str, reader: Csv, wanted: frozenset[str], name: str) -> Layout | None:
    size, is_whole, rows = _HEAD_BYTES, False, list[list[str]]()
    while not is_whole and len(rows) < 2:  # the last may go on behind the part that was read
        content = store.part(raw_key(application, name), first=size)
        is_whole, size = len(content) < size, 4 * size
        text = _decoded(reader, name, _inflated(name, content))
        rows = _rows(reader, application, name, text)
    if not rows:
        return None
    if not reader.header:
        return Layout(tuple(f"_c{n}" for n in range(len(rows[0]))))
    if twice := sorted(each for each in wanted if rows[0].count(each) > 1):
        raise BadInput(f"raw object {name} of {application} has two columns {twice[0]!r}", "name them apart")
    return Layout(tuple(rows[0]))


def _inflated(name: str, content: bytes) -> bytes:
    """The beginning of what a beginning of the object holds."""
    if name.endswith(".gz"):
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(content)
    return bz2.BZ2Decompressor().decompress(content) if name.endswith(".bz2") else content


def _decoded(reader: Csv, name: str, content: bytes) -> str:
    text = content.decode(reader.codec, errors="replace")
    if "\0" in text:
        raise BadInput(
            f"raw object {name} is no text in {reader.encoding}",
            "give the source its encoding, as Csv(…, encoding='utf-16', multiline=True)",
        )
    return text


def _rows(reader: Csv, application: str, name: str, text: str) -> list[list[str]]:
    """The rows in a beginning of a file, but for blank ones; of the last perhaps a part.

    Raises: BadInput where rows go on in the next line, and the source does not say so: each would be cut short.
    """
    found: list[list[str]] = []
    lines_of_row = csv.reader(io.StringIO(text, newline=""), delimiter=reader.separator)
    read_lines = 0
    try:
        for row in lines_of_row:
            lines, read_lines = lines_of_row.line_num - read_lines, lines_of_row.line_num
            if lines > 1 and not reader.multiline and found and len(row) == len(found[0]):
                raise BadInput(
                    f"a cell of raw object {name} of {application} goes on in the next line (line {read_lines})",
                    "give the source Csv(…, multiline=True)",
                )
            if row:
                found.append(row)
    except csv.Error:  # a cell without an end; its row is refused when it is read
        pass
    return found


def _of_parquet(store: ObjectStore, application: str, wanted: frozenset[str], name: str) -> Layout:
    schema = _footer(store, application, name).schema
    columns, nanoseconds = list[str](), list[str]()
    for number in range(len(schema)):
        leaf = schema.column(number)
        if not any(leaf.path == column or leaf.path.startswith(f"{column}.") for column in wanted):
            continue
        columns.append(f"{leaf.path} {leaf.physical_type} {leaf.logical_type} {leaf.max_repetition_level}")
        if leaf.path in wanted and leaf.physical_type == "INT64" and "nanoseconds" in str(leaf.logical_type):
            nanoseconds.append(leaf.path)
    return Layout(tuple(sorted(columns)), tuple(sorted(nanoseconds)))


def _footer(store: ObjectStore, application: str, name: str) -> pq.FileMetaData:
    tail = store.part(raw_key(application, name), last=_FOOTER_BYTES)
    size = int.from_bytes(tail[-8:-4], "little") + 8
    if tail.endswith(_MAGIC) and size > len(tail):
        tail = store.part(raw_key(application, name), last=size)
    try:
        return pq.read_metadata(pa.BufferReader(tail))
    except pa.ArrowException as exc:
        raise CorruptObject(
            f"raw object {name} of {application} cannot be read: {exc}",
            "upload the original again with 'deeplambda data put', then ingest",
        ) from exc
