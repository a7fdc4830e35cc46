"""Layouts: what each file of a table says of its own columns, asked before Spark reads it.

Files of one source come over the years, and from several programs: a column is added, two change places, times turn
from nanoseconds to microseconds. Spark reads files as one schema says, and takes a number of another unit for what it
is told. So files of one layout are read together, and those of another apart. What a header or a footer means is for
Spark to say; here it is only told which files have the same.
"""

import bz2
import csv
import re
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from batch_layer.raw_objects import raw_key, unreadable
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.errors import BadInput
from deeplambda.sources import Csv, Table

_ASKED_AT_ONCE = 8
_HEAD_BYTES, _LONGEST_HEAD_BYTES = 16 << 10, 16 << 20
_FOOTER_BYTES = 64 << 10
_MAGIC = b"PAR1"
_FOR_SPARK = (".deflate", ".lz4", ".snappy", ".zst")
"""Ends of names that Spark inflates, as it does `.gz` and `.bz2`."""
_BLANK = " \t\r\n"
_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class Layout:
    """columns: of a CSV its header as it stands, or the object's name where only Spark can tell it; of Parquet what is
    written in each column that is read. nanoseconds: columns of times in that unit, which Spark reads as numbers.
    """

    columns: tuple[str, ...] = ()
    nanoseconds: tuple[str, ...] = ()


def by_layout(
    store: ObjectStore, application: str, reader: Table, names: Iterable[str], wanted: Iterable[str]
) -> dict[Layout, list[str]]:
    """The objects `names` of a source, those of one layout together; a CSV without a line is in none.

    wanted: the columns that are read; others of Parquet may be as they like. Raises: BadInput, CorruptObject, NotReady.
    """
    columns = frozenset(wanted)

    def of(name: str) -> Layout | None:
        key = raw_key(application, name)
        try:
            return _of_csv(store, key, reader) if isinstance(reader, Csv) else _of_parquet(store, key, columns)
        except (pa.ArrowException, zlib.error, OSError, EOFError) as exc:
            raise unreadable(application, name, exc) from exc
        except ValueError as exc:
            raise BadInput(f"raw object {name} of {application}: {exc}", "correct the source, or the file") from exc

    found: dict[Layout, list[str]] = {}
    names = list(names)
    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="layout") as executor:
        for name, layout in zip(names, executor.map(of, names), strict=True):
            if layout is not None:
                found.setdefault(layout, []).append(name)
    return found


def _of_csv(store: ObjectStore, key: str, reader: Csv) -> Layout | None:
    """Raises: ValueError."""
    if key.endswith(_FOR_SPARK):
        return Layout((key,))
    lines, is_whole, size = list[str](), False, _HEAD_BYTES
    while not is_whole and len(lines) < 2 and size <= _LONGEST_HEAD_BYTES:  # the last line may be broken off
        content = store.part(key, first=size)
        is_whole, size = len(content) < size, 4 * size
        text = _inflated(key, content).decode(reader.codec, errors="replace")
        lines = [line for line in _LINE_END.split(text) if line.strip(_BLANK)]
    if not lines:
        return None
    if not reader.header:
        return Layout()
    if "\0" in lines[0]:
        raise ValueError(f"its header is no text in {reader.encoding}: give the source its encoding")
    if lines[0].count('"') % 2:  # it goes on in the next line
        return Layout((key,))
    if not reader.multiline and len(reader.separator) == 1:
        _check_lines(lines[: None if is_whole else -1], reader.separator)
    return Layout((lines[0],))


def _check_lines(lines: list[str], separator: str) -> None:
    """Raises: ValueError where rows go on in the next line: each would be cut short, and look whole.

    That a quote is open at a line's end does not say so: it may be a stray one. But it is no chance that the quote ends
    before a separator, that the row then has a cell for each column, and that no line of it but the first has so many.
    """
    rows = csv.reader(lines, delimiter=separator, strict=True)
    ends = [0]
    with suppress(csv.Error):
        header = next(rows, [])
        ends.append(rows.line_num)
        for row in rows if len(header) > 1 else ():
            ends.append(rows.line_num)
            inner = lines[ends[-2] + 1 : ends[-1]]
            counts = [len(cells) for cells in csv.reader(inner, delimiter=separator)]
            if inner and len(row) == len(header) and len(counts) == len(inner) and len(header) not in counts:
                raise ValueError(f"a cell goes on in the next line (line {ends[-1]}): Csv(…, multiline=True) reads it")


def _inflated(key: str, content: bytes) -> bytes:
    """The beginning of what a beginning of the object holds."""
    if key.endswith(".bz2"):
        return bz2.BZ2Decompressor().decompress(content)
    if not key.endswith(".gz"):
        return content
    found = b""
    while content and len(found) < _LONGEST_HEAD_BYTES:  # a file may be of several parts, one after the other
        part = zlib.decompressobj(zlib.MAX_WBITS | 16)
        found += part.decompress(content, _LONGEST_HEAD_BYTES)
        content = part.unused_data
    return found


def _of_parquet(store: ObjectStore, key: str, wanted: frozenset[str]) -> Layout:
    tail = store.part(key, last=_FOOTER_BYTES)
    size = int.from_bytes(tail[-8:-4], "little") + 8
    if tail.endswith(_MAGIC) and size > len(tail):
        tail = store.part(key, last=size)
    schema = pq.read_metadata(pa.BufferReader(tail)).schema
    columns, nanoseconds = list[str](), list[str]()
    for number in range(len(schema)):
        leaf = schema.column(number)
        if not any(leaf.path == column or leaf.path.startswith(f"{column}.") for column in wanted):
            continue
        columns.append(f"{leaf.path} {leaf.physical_type} {leaf.logical_type} {leaf.max_repetition_level}")
        if leaf.path in wanted and leaf.physical_type == "INT64" and "nanoseconds" in str(leaf.logical_type):
            nanoseconds.append(leaf.path)
    return Layout(tuple(sorted(columns)), tuple(sorted(nanoseconds)))
