"""Which files of a table have the same columns, told by the bytes at their beginning or end."""

import gzip
import io
import zlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_layer.layouts import Layout, by_layout
from deeplambda.errors import BadInput, CorruptObject
from deeplambda.sources import Csv, Parquet, Table


class Parts:
    """The parts of contents by name, as S3 gives them. asked_bytes: in all."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents, self.asked_bytes = {f"tested/raw/{name}": content for name, content in contents.items()}, 0

    def part(self, key: str, *, first: int = 0, last: int = 0) -> bytes:
        found = self.contents[key][:first] if first else self.contents[key][-last:]
        self.asked_bytes += len(found)
        return found


def layouts(reader: Table, *wanted: str, **contents: bytes) -> dict[Layout, list[str]]:
    store: Any = Parts(contents)
    return by_layout(store, "tested", reader, contents, wanted)


def test_files_of_one_header_are_read_together_and_others_apart() -> None:
    found = layouts(
        Csv("*"),
        first=b"x,y,label\n1,2,a\n",
        same=b"\xef\xbb\xbfx,y,label\r\n",
        later=b"  \n\nx,y,label",
        spaced=b"x, y, label\n",
        swapped=b"label,y,x\n",
        twice=b"x,y,X\n",
        empty=b"",
        blank=b" \r\n\n",
    )
    assert list(found.values()) == [["first", "same", "later"], ["spaced"], ["swapped"], ["twice"]]
    assert len(layouts(Csv("*", separator="||"), a=b"x||y\n", b=b"y||x\n")) == 2
    over_lines = {"a": b'"a\nb",x,y\n1,2,3\n', "b": b'"a\nb",y,x\n1,2,3\n'}
    assert len(layouts(Csv("*", multiline=True), **over_lines)) == 2, "whose first lines are equal"
    deflated = {name: zlib.compress(b"x,y\n1,2\n") for name in ("a.deflate", "b.deflate")}
    assert len(layouts(Csv("*"), **deflated)) == 2, "Spark inflates them"


def test_no_file_with_rows_is_left_out_whatever_they_look_like() -> None:
    long = b"a" * 140_000 + b",1\nb,2\n"
    open_quote = b'"I love it,yes\n' + b"fine,no\n" * 30_000
    parts = gzip.compress(b"") + gzip.compress(b"text,label\n") + gzip.compress(b"fine,no\n")
    assert layouts(Csv("*", header=False), "_c0", long=long, quoted=open_quote, **{"p.gz": parts}) == {
        Layout(): ["long", "quoted", "p.gz"]
    }
    wide = ",".join(f"column {n}" for n in range(5_000)).encode() + b"\n1,2\n"
    (found,) = layouts(Csv("*"), wide=wide)
    assert found.columns[0].endswith(",column 4999")
    (found,) = layouts(Csv("*"), **{"p.gz": parts})
    assert found.columns == ("text,label",)


def test_little_of_a_large_file_is_asked_for() -> None:
    store: Any = Parts({"large": b"x,label\n" + b"1,a\n" * 1_000_000, "one line": b"x" * 1_000_000})
    by_layout(store, "tested", Csv("large"), ["large"], ["x"])
    assert store.asked_bytes == 16 << 10
    by_layout(store, "tested", Csv("one line"), ["one line"], ["x"])
    assert store.asked_bytes < 3_000_000


@pytest.mark.parametrize(
    "rows",
    [
        'pos,"first\nsecond"\nneg,third\n',
        'pos,"first\nand\n\nlast"\n',
    ],
)
def test_cells_that_go_on_in_the_next_line_are_refused_with_what_reads_them(rows: str) -> None:
    content = f"label,text\n{rows}".encode()
    with pytest.raises(BadInput, match=r"raw object notes of tested: a cell goes on in the next line \(line \d\)"):
        layouts(Csv("*"), "text", notes=content)
    assert layouts(Csv("*", multiline=True), "text", notes=content)


@pytest.mark.parametrize(
    "rows",
    [
        '"I love it,yes\nfine,no\n"plain",no\nHe said "no" there,yes\n',
        '"I love it,yes\nfine,no\n',
        'a 5" pipe,yes\nan 8" one,no\n',
        '"one, whole ""cell""",yes\n',
    ],
)
def test_a_stray_quote_costs_its_own_row_alone(rows: str) -> None:
    assert layouts(Csv("*"), "text", notes=f"text,label\n{rows}".encode())
    assert layouts(Csv("*"), "text", notes=f"text\n{rows}".encode())


def test_what_cannot_be_read_is_told_by_name() -> None:
    with pytest.raises(CorruptObject, match=r"raw object a\.gz of tested cannot be read"):
        layouts(Csv("*"), "x", **{"a.gz": b"no gzip"})
    with pytest.raises(CorruptObject, match="raw object a of tested cannot be read"):
        layouts(Parquet("*"), "x", a=b"no Parquet")
    with pytest.raises(BadInput, match="raw object a of tested: its header is no text in utf-8"):
        layouts(Csv("*"), "x", a="x,y\n1,2\n".encode("utf-16"))
    assert layouts(Csv("*", encoding="utf-16", multiline=True), "x", a="x,y\n1,2\n".encode("utf-16"))


def _parquet(**columns: pa.Array) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.table(columns), written)
    return written.getvalue()


def test_parquet_files_are_told_apart_by_the_types_of_what_is_read() -> None:
    at = pa.array([1, 2])
    found = layouts(
        Parquet("*"),
        *("at", "of.it", "place"),
        nanoseconds=_parquet(**{"at": at.cast(pa.timestamp("ns")), "unread": at}),
        of_another_rest=_parquet(**{"at": at.cast(pa.timestamp("ns")), "unread": pa.array(["a", "b"])}),
        microseconds=_parquet(at=at.cast(pa.timestamp("us"))),
        further=_parquet(**{"at": at.cast(pa.timestamp("us")), "of.it": at, "place": pa.array([{"x": 1}, None])}),
        wide=_parquet(at=at.cast(pa.timestamp("us")), **{f"unread {n}": at for n in range(2_000)}),
    )
    assert list(found.values()) == [["nanoseconds", "of_another_rest"], ["microseconds", "wide"], ["further"]]
    assert [layout.nanoseconds for layout in found] == [("at",), (), ()]
