"""The check's sample of rows: what ingest would read, and enough of each label."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import AwareDatetime

from deeplambda.application import Event
from deeplambda.objective import Classification
from deeplambda.sources import Csv, JsonLines, Parquet, Source, Table
from deeplambda.splits import ByHash
from deeplambda.testing.checker import _check_ids
from deeplambda.testing.findings import Report
from deeplambda.testing.places import Places
from deeplambda.testing.sample import evenly, read_sample, sampled
from deeplambda.testing.work import TRIED_ROWS, Work, tried_rows

ROWS = 40
NAIVE = "2018-07-25 10:00:00"


class Paid(Event):
    paid_at: datetime
    seen_at: AwareDatetime | None = None


class Payments:
    name = "payments"
    event = Paid
    splits = ByHash(train=0.5, test=0.5)
    objective = Classification(("no", "yes"))

    def __init__(self, source: Table | Source) -> None:
        self.sources = (source,)


def _csv(folder: Path) -> Table:
    lines = [f"{NAIVE},{NAIVE},{'yes' if n == 7 else 'no'}" for n in range(ROWS)]
    (folder / "rows.csv").write_text("\n".join(["paid_at,seen_at,label", *lines]) + "\n")
    return Csv("rows.csv", label="label")


def _json_lines(folder: Path) -> Table:
    row = {"paid_at": NAIVE.replace(" ", "T"), "seen_at": "2018-07-25T12:00:00+02:00"}
    lines = [json.dumps(row | {"label": "yes" if n == 7 else "no"}) for n in range(ROWS)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return JsonLines("rows.jsonl", label="label")


def _parquet(folder: Path, unit: str) -> Table:
    times = pa.array([datetime.fromisoformat(NAIVE)] * ROWS, pa.timestamp(unit))  # without a zone
    labels = ["yes" if n == 7 else "no" for n in range(ROWS)]
    pq.write_table(pa.table({"paid_at": times, "seen_at": times, "label": labels}), folder / "rows.parquet")
    return Parquet("rows.parquet", label="label")


@pytest.mark.parametrize(
    "source_of",
    [_csv, _json_lines, *(lambda folder, unit=unit: _parquet(folder, unit) for unit in ("ms", "us", "ns"))],
    ids=["csv", "json-lines", "parquet-ms", "parquet-us", "parquet-ns"],
)
def test_a_time_without_a_zone_is_in_utc_as_ingest_reads_it(source_of: Any, tmp_path: Path) -> None:
    sample = read_sample(Payments(source_of(tmp_path)), tmp_path)  # type: ignore[arg-type]
    assert not sample.refused
    assert len(sample.rows) == ROWS
    moments = {(row.event.paid_at, row.event.seen_at) for row in sample.rows}  # type: ignore[attr-defined]
    assert moments == {(datetime(2018, 7, 25, 10, tzinfo=UTC),) * 2}
    assert all(row.event.paid_at.tzinfo is not None for row in sample.rows)  # type: ignore[attr-defined]


@pytest.mark.parametrize("source_of", [_csv, _json_lines, lambda folder: _parquet(folder, "us")])
def test_a_rare_label_is_in_the_sample(source_of: Any, tmp_path: Path) -> None:
    sample = read_sample(Payments(source_of(tmp_path)), tmp_path, limit_rows=8)  # type: ignore[arg-type]
    labels = Counter(row.label for row in sample.rows)
    assert labels["yes"] == 1
    assert 6 <= labels["no"] <= 9


def test_an_empty_cell_is_none_and_never_an_empty_text(tmp_path: Path) -> None:
    class Said(Event):
        words: str

    class Sayings(Payments):
        event = Said  # type: ignore[assignment]

    (tmp_path / "rows.csv").write_text("words,label\nfine,no\n,no\n")
    sample = read_sample(Sayings(Csv("rows.csv", label="label")), tmp_path)  # type: ignore[arg-type]
    assert len(sample.rows) == 1
    assert sample.refused == {"words: Input should be a valid string": 1}, "as ingest says it"


def test_a_cell_of_several_lines_is_read_where_the_source_says_so(tmp_path: Path) -> None:
    class Said(Event):
        words: str

    class Sayings(Payments):
        event = Said  # type: ignore[assignment]

    (tmp_path / "rows.csv").write_bytes('\ufeffwords,label\r\n"one\r\ntwo, ""three""",no\r\nfine,no\r\n'.encode())
    whole = read_sample(Sayings(Csv("rows.csv", label="label", multiline=True)), tmp_path)  # type: ignore[arg-type]
    assert [row.event.words for row in whole.rows] == ['one\ntwo, "three"', "fine"]  # type: ignore[attr-defined]
    torn = read_sample(Sayings(Csv("rows.csv", label="label")), tmp_path)  # type: ignore[arg-type]
    assert [row.event.words for row in torn.rows] == ["fine"]  # type: ignore[attr-defined]
    assert any("multiline=True" in reason for reason in torn.refused)


def test_items_lie_evenly_and_rare_labels_get_their_part() -> None:
    assert evenly(range(10), 5) == [0, 2, 4, 6, 8]
    assert evenly(range(3), 5) == [0, 1, 2]
    assert evenly((), 5) == []
    found = sampled(((n, n % 100 == 0) for n in range(1000)), 40)
    assert [n for n, rare in found if rare][:3] == [0, 200, 400]
    assert [n for n, _ in found] == sorted(n for n, _ in found)
    assert len(sampled(((n, n) for n in range(1000)), 40)) == 40, "numbers are no rare labels"


def test_a_model_is_tried_on_rows_of_each_label_in_turn(tmp_path: Path) -> None:
    work = Work(places=Places(tmp_path), report=Report(application="payments"))
    sample = read_sample(Payments(_csv(tmp_path)), tmp_path)  # type: ignore[arg-type]
    work.rows = sample.rows * 5
    tried = tried_rows(work)
    assert Counter(row.label for row in tried) == {"yes": 5, "no": TRIED_ROWS - 5}
    assert {row.label for row in tried[:2]} == {"yes", "no"}


def test_raw_objects_under_a_prefix_are_given_to_examples_one_by_one(tmp_path: Path) -> None:
    class Said(Event):
        words: str

    class Sayings(Payments):
        event = Said  # type: ignore[assignment]

        def examples(self, source: Source, raw: dict[str, bytes]) -> Iterator[dict[str, str]]:
            (name,) = source.objects
            yield {"words": f"{name}: {raw[name].decode()}", "label": "no"}

    for name in ("1", "2"):
        (tmp_path / "days").mkdir(exist_ok=True)
        (tmp_path / "days" / name).write_text("fine")
    sample = read_sample(Sayings(Source(objects=("days/",))), tmp_path)  # type: ignore[arg-type]
    assert [row.event.words for row in sample.rows] == ["days/1: fine", "days/2: fine"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("as_parquet", [False, True])
def test_rows_that_take_one_another_s_place_are_counted(as_parquet: bool, tmp_path: Path) -> None:
    rows = [{"customer": f"c{n // 5}", "paid_at": f"2018-07-{n % 5 + 1:02}", "label": "yes"} for n in range(5 * ROWS)]
    if as_parquet:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
        source: Table = Parquet("rows.parquet", label="label", event_id="customer")
    else:
        text = [",".join(row.values()) for row in rows]
        (tmp_path / "rows.csv").write_text("\n".join(["customer,paid_at,label", *text]))
        source = Csv("rows.csv", label="label", event_id="customer")
    sample = read_sample(Payments(source), tmp_path, limit_rows=8)  # type: ignore[arg-type]
    assert sample.overwritten == {source.path: (4 * ROWS, 5 * ROWS)}
    report = Report(application="payments")
    work = Work(places=Places(tmp_path), report=report)
    _check_ids(work, sample)
    assert "160 of 200 rows" in str(report.findings[0])
