"""Rows come from tables, texts and images in parallel, are divided as declared, and never leak from split to split."""

import gzip
import io
import json
import struct
import zlib
from datetime import UTC
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from batch_layer.data_set import data_set
from batch_layer.ingest import Ingested, ingest
from batch_layer.prepare import prepare
from batch_layer.raw_objects import files_of, raw_key
from batch_layer.shard_format import announcement_key, manifest_key, shard_key
from batch_layer.training_run import train
from batch_layer.trial_rows import rows_of_trials
from deeplambda.adapters.lake import create_tables
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_row
from deeplambda.config import Settings
from deeplambda.errors import BadInput, ConfigurationError, CorruptObject
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.testing.sample import read_sample
from tests.integration.blobs import SeenBars

_APPLICATION = """
from datetime import datetime
from typing import Annotated

import numpy as np
from deeplambda.application import Application, Event
from deeplambda.features import Tensor
from deeplambda.fields import grey_image
from deeplambda.objective import Classification, accuracy
from deeplambda.sources import (
    ByGroup, ByHash, BySource, ByTime, Csv, Images, JsonLines, Lines, Parquet, Source,
)


class Seen(Event):
    {event}


class Tested(Application):
    name = "{name}"
    event = Seen
    objective = Classification(("no", "yes"))
    metrics = {{"accuracy": accuracy}}
    hyperparameters = {{"epochs": 1, "batch_size": 50, "learning_rate": 0.02, "weight_decay": 0.0}}
    search_space = {{}}
    {body}

    def transform(self, batch):
        return np.column_stack([batch["x"], batch["y"]]).astype(np.float32)

    def build_model(self):
        from torch import nn

        return nn.Linear(2, 2)
"""


class Bench:
    """One application of a test's own, its folder of raw files, and the lake that it is ingested into."""

    def __init__(self, spark: SparkSession, settings: Settings, folder: Path) -> None:
        self.spark, self.settings, self.store = spark, settings, ObjectStore(settings)
        self.name = f"sources_{uuid4().hex[:8]}"
        self.home, self.files = folder / self.name, folder / "files"
        self.home.mkdir()
        self.files.mkdir()
        self.packed: PackedApplication
        self.body = ""

    def write(self, event: str, body: str) -> None:
        """(Over)write the application. Both are indented once."""
        self.body = body
        code = _APPLICATION.format(event=event, name=self.name, body=body.strip())
        (self.home / "application.py").write_text(code)
        self.packed = pack_application(str(self.home), self.settings)

    def put(self, **files: bytes | str) -> None:
        """Put files as `deeplambda data put` does; `__` in a name is a dot."""
        for name, content in files.items():
            path = self.files / name.replace("__", ".").replace("_of_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        for name in files_of(self.packed.load(), self.files).meant:
            self.store.put_file(raw_key(self.name, name), self.files / name)

    def ingest(self, *, whole: bool = False) -> Ingested:
        return ingest(self.spark, self.settings, self.packed, whole=whole)

    def rows(self, table: str = "examples") -> list[dict[str, Any]]:
        found = self.spark.table(f"lake.{self.name}.{table}")
        order = "event_id" if table == "examples" else "record"
        return [row.asDict() for row in found.orderBy(order).collect()]

    def quarantined(self) -> list[tuple[str, str, bytes]]:
        return [(row["source"], row["reason"], bytes(row["record"])) for row in self.rows("quarantine")]


@pytest.fixture
def bench(spark: SparkSession, stack: Settings, tmp_path: Path) -> Bench:
    return Bench(spark, stack, tmp_path)


def points(first: int, count: int) -> str:
    """Lines of a table; the label says whether x is above y."""
    rows = [(n % 7 - 3.5, n % 5 - 2.25, n) for n in range(first, first + count)]
    return "".join(f"{n},{x},{y},{'yes' if x > y else 'no'}\n" for x, y, n in rows)


def test_one_csv_fills_every_split_by_hash_and_a_model_is_trained_on_it(bench: Bench) -> None:
    bench.write(
        "x: float\n    y: float",
        'sources = (Csv("points-*.csv*", label="above", event_id="number"),)\n    splits = ByHash()',
    )
    header, bad, unlabelled = "number,x,y,above\n", "600,1.5,high,no\n", "601,1.5,2.5,\n602,-1,0,maybe\n"
    bench.put(**{"points-1__csv": header + points(0, 400) + points(0, 3) + bad + unlabelled})
    first = bench.ingest()
    assert sum(first.found.values()) == 401
    assert first.found == first.added
    assert 300 < first.added["train"] < 340
    assert first.added.keys() == {"train", "validation", "test"}
    assert (first.duplicates, first.quarantined, first.unlabelled) == (3, 2, 1)
    source = "points-1.csv"
    assert [each[:2] for each in bench.quarantined()] == [(source, "ValueError"), (source, "ValueError")]
    assert bench.quarantined()[0][2] == bad.strip().encode()
    assert json.loads(bench.quarantined()[1][2]) == {"x": -1.0, "y": 0.0, "event_id": "602", "label": "maybe"}
    number_1 = next(row for row in bench.rows() if row["event_id"] == "1")
    assert (number_1["x"], number_1["y"], number_1["label"]) == (-2.5, -1.25, "no")
    assert number_1["source_sha256"] == bench.store.digest(raw_key(bench.name, source))

    again = bench.ingest()
    assert (again.objects, again.passed_over, again.found) == (0, 1, {})
    again = bench.ingest(whole=True)
    assert (again.objects, again.found, again.added, again.quarantined) == (1, first.found, {}, 0)
    before = bench.rows()

    bench.put(**{"points-2__csv__gz": gzip.compress((header + points(400, 50)).encode())})
    more = bench.ingest()
    assert (more.objects, more.passed_over, sum(more.found.values())) == (1, 1, 50)
    assert (sum(more.added.values()), more.quarantined) == (50, 0)
    after = bench.rows()
    assert [row for row in after if row["source"] == source] == before
    assert {row["event_id"] for row in after} - {row["event_id"] for row in before} == {
        str(number) for number in range(400, 450)
    }

    dataset = data_set(bench.spark, bench.packed)
    assert dataset.unlabelled == 1
    shards = prepare(bench.spark, bench.settings, bench.packed, dataset)
    assert sum(shard.rows for shard in shards) == 450
    trained = train(
        bench.settings, bench.packed, dataset=dataset.id, snapshot=1, overrides={}, listener=SeenBars(), preparing=None
    )
    (epoch,) = trained.epochs
    assert set(epoch.metrics) == set(epoch.validation_metrics) == {"accuracy"}
    training, compared = rows_of_trials(bench.settings, bench.packed.load(), dataset.id)
    held = {shard.split: shard.rows for shard in shards}
    assert (len(training), len(compared)) == (held["train"], held["validation"])


def test_preparing_again_after_a_crash_makes_only_the_shards_that_are_missing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(
        "x: float\n    y: float",
        'sources = (Csv("points.csv", label="above", event_id="number"),)\n    splits = ByHash()\n'
        '    features = Tensor("float32", (2,))',
    )
    bench.put(points__csv="number,x,y,above\n" + points(0, 400))
    bench.ingest()
    monkeypatch.setattr("batch_layer.data_set.SHARD_BYTES", 2_000)
    dataset = data_set(bench.spark, bench.packed)
    whole = prepare(bench.spark, bench.settings, bench.packed, dataset)
    assert sum(shard.rows for shard in whole) == 400
    splits = [shard.split for shard in whole]
    assert splits.count("train") > 2, "shards are of a size in bytes, and the rows do not fit one"
    assert splits.index("test") == splits.count("train"), "the train split comes first"
    held = {split: sum(each.rows for each in whole if each.split == split) for split in splits}
    half_mb = sum(each.size_bytes for each in whole) / 2 / 2**20
    little = bench.settings.model_copy(update={"trainer_memory_mb": half_mb})
    training, compared = rows_of_trials(little, bench.packed.load(), dataset.id)
    assert 0 < len(training) < held["train"]
    assert 0 < len(compared) <= held["validation"], "it keeps its place though not all rows have room"

    s3, bucket = bench.store.client, bench.store.bucket
    place = (dataset.application, dataset.id, "train", 1)
    for key in (manifest_key(dataset.application, dataset.id), announcement_key(*place), shard_key(*place)):
        s3.delete_object(Bucket=bucket, Key=key)
    before = {shard.key: s3.head_object(Bucket=bucket, Key=shard.key)["LastModified"] for shard in whole
              if shard.key != shard_key(*place)}  # fmt: skip
    again = prepare(bench.spark, bench.settings, bench.packed, dataset)
    assert {shard.key: shard.sha256 for shard in again} == {shard.key: shard.sha256 for shard in whole}
    assert {key: s3.head_object(Bucket=bucket, Key=key)["LastModified"] for key in before} == before
    assert bench.store.digest(shard_key(*place)) is not None
    assert prepare(bench.spark, bench.settings, bench.packed, dataset) == again


def test_cells_of_several_lines_and_times_are_read_and_known_again_by_their_content(bench: Bench) -> None:
    bench.write(
        "text: str\n    at: datetime",
        'sources = (Csv("notes.csv", label="above", multiline=True),)\n    splits = ByHash(train=0.5, test=0.5)',
    )
    notes = "".join(f'"first {n}\nsecond, ""{n}""",2026-01-02 03:04:{n:02},yes\n' for n in range(20))
    bench.put(notes__csv="text,at,above\n" + notes)
    first = bench.ingest()
    assert sum(first.added.values()) == 20, bench.quarantined()
    assert {row["text"] for row in bench.rows()} == {f'first {n}\nsecond, "{n}"' for n in range(20)}
    assert bench.rows()[0]["at"].strftime("%Y-%m-%d %H:%M") == "2026-01-02 03:04"
    assert bench.ingest().added == {}


def test_fields_have_ordinary_names_and_none_that_only_its_case_tells_from_another(bench: Bench) -> None:
    names = ("reason", "group", "row", "detail", "record", "quarantined_at", "kafka_offset", "rows", "kept")
    bench.write(
        "\n    ".join(f"{name}: int" for name in names),
        'sources = (Csv("points-*.csv", label="above", event_id="id"),)\n'
        '    splits = ByGroup("group", train=0.5, test=0.5)',
    )
    rows = "".join(f"{n},{','.join(str(n) for _ in names)},yes\n" for n in range(20))
    header = f"id,{','.join(names)},above\n"
    bench.put(**{"points-1__csv": header + rows + f"bad,{','.join('x' for _ in names)},no\n"})
    first = bench.ingest()
    assert (sum(first.added.values()), first.quarantined) == (20, 1)
    assert [[row[name] for name in names] for row in bench.rows() if row["event_id"] == "7"] == [[7] * len(names)]
    (refused,) = bench.rows("quarantine")
    assert (refused["reason"], refused["row"]) == ("ValueError", 20)
    corrected = rows.splitlines()[3].replace(",yes", ",no")
    bench.put(**{"points-2__csv": header + corrected + "\n"})
    assert sum(bench.ingest().corrected.values()) == 1
    with pytest.raises(ConfigurationError, match=r"Seen\.x: a field may not be called as the field 'X'"):
        bench.write("X: float\n    x: float", bench.body)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_check_reads_of_a_file_what_an_ingest_does(bench: Bench, kind: str) -> None:
    reader = {"csv": "Csv", "jsonl": "JsonLines", "parquet": "Parquet"}[kind]
    arguments = 'label="above", event_id="id", occurred_at="since", split='
    bench.write(
        "flag: bool | None = True\n    count: int = 7\n    at: datetime | None = None\n    text: str | None = None",
        f'sources = ({reader}("train.{kind}", {arguments}"train"), {reader}("test.{kind}", {arguments}"test"))',
    )
    cells = {
        "csv": {
            "flag": ["true", "1", " No ", "", "2", "yes"],
            "count": ["5", " 5", "5.0", "", "5.5", "x"],
            "at": ["2024-01-31 10:00:00", "1700000000", "250000000000", "20240131", "20240131100000", "2024"],
            "text": ["", "5", " a ", "NaN", "b", "c"],
        },
        "jsonl": {
            "flag": [True, False, None, 1, "true"],
            "count": [5, None, 5.0, "5", 6],
            "at": ["2024-01-31T10:00:00+02:00", 1_700_000_000, 250_000_000_000, "20240131", 5],
            "text": ["", 5, {"a": [1]}, None, True],
        },
        "parquet": {
            "flag": [1, 0, None, 2],
            "count": [5.0, None, 5.5, 7.0],
            "at": [0, 1_700_000_000, 250_000_000_000, None],
            "text": [5, None, 1 << 60, 7],
        },
    }[kind]
    plain = {name: values[0] for name, values in cells.items()}
    rows = [plain | {name: value} for name, values in cells.items() for value in values]
    times = ["2024-01-31 10:00:00", "1700000000", "20240131"] if kind != "parquet" else [1_700_000_000] * 3
    for first, split in ((0, "train"), (100, "test")):
        told = [
            row | {"since": times[n % 3], "above": "yes", "id": f"row-{first + n}"} for n, row in enumerate(rows, 1)
        ]
        path = bench.files / f"{split}.{kind}"
        if kind == "csv":
            path.write_text("\n".join([",".join(told[0]), *(",".join(row.values()) for row in told)]) + "\n")
        elif kind == "jsonl":
            path.write_text("".join(f"{json.dumps(row)}\n" for row in told))
        else:
            pd.DataFrame(told).convert_dtypes().to_parquet(path)
    bench.put()
    ingested, sample = bench.ingest(), read_sample(bench.packed.load(), bench.files)
    found = {row["event_id"]: row for row in bench.rows()}
    looked_at = {row.event.event_id: (row.event, row.split) for row in sample.rows}
    assert looked_at.keys() == found.keys(), bench.quarantined()
    assert sum(sample.refused.values()) == ingested.quarantined > 0
    for name, (event, split) in looked_at.items():
        kept = {field: found[name][field] for field in cells} | {"split": found[name]["split"]}
        at = kept["at"] and kept["at"].replace(tzinfo=UTC)
        assert payload_row(event) | {"split": split} == kept | {"at": at}, name


def test_a_line_that_is_not_utf_8_is_quarantined_and_its_file_is_not(bench: Bench) -> None:
    bench.write(
        "text: str",
        'sources = (Lines("good", label="yes"), Lines("bad", label="no"), Lines("new.gz", split="test"))\n'
        "    splits = ByHash(train=0.5, test=0.5)",
    )
    lines = [f"the {number}th film was naïve" for number in range(20)]
    bench.put(
        good="\ufeff" + "\n".join(lines),
        bad=b"it was a caf\xe9\n\n" + "\r\n".join(lines).encode(),
        new__gz=gzip.compress(b"who knows\n"),
    )
    found = bench.ingest()
    assert (sum(found.added.values()), found.duplicates, found.unlabelled) == (41, 0, 1)
    assert bench.quarantined() == [("bad", "UnicodeDecodeError", b"it was a caf\xe9")]
    rows = bench.rows()
    assert {row["text"] for row in rows} == {*lines, "who knows"}
    assert {row["label"] for row in rows} == {"yes", "no", None}
    assert {row["split"] for row in rows if row["label"] is None} == {"test"}
    bench.write("text: str", bench.body.replace("train=0.5, test=0.5", "train=0.1, test=0.9"))
    with pytest.raises(BadInput, match=r"would be in the split 'test', and is in 'train' since an earlier ingest"):
        bench.ingest()


def test_json_lines_by_group_keep_a_group_together_and_a_bad_line_apart(bench: Bench) -> None:
    bench.write(
        "x: float\n    y: float\n    tags: list[str]",
        'sources = (JsonLines("clicks/", columns={"x": "across"}, label="bought", occurred_at="when"),)\n'
        '    splits = ByGroup("customer", train=0.5, test=0.5)',
    )
    given = [
        {"customer": n % 9, "across": n, "y": 0.5, "tags": ["a", "b"], "bought": "yes", "when": "2026-01-01T00:00:00Z"}
        for n in range(45)
    ]
    lines = [json.dumps(each) for each in given]
    broken = [
        '{"customer": 1, "across": ',
        json.dumps(given[0] | {"across": "far"}),
        json.dumps(given[0] | {"y": None}),
    ]
    bench.put(
        **{"clicks_of_1__jsonl": "\n".join(lines[:30] + broken), "clicks_of_b b_of_2__jsonl": "\n".join(lines[30:])}
    )
    found = bench.ingest()
    assert (sum(found.added.values()), found.quarantined) == (45, 3)
    assert {bytes(row["record"]).decode() for row in bench.rows("quarantine")} >= set(broken[:2])
    rows = bench.rows()
    assert {row["source"] for row in rows} == {"clicks/1.jsonl", "clicks/b b/2.jsonl"}
    splits: dict[float, set[str]] = {}
    for row in rows:
        splits.setdefault(row["x"] % 9, set()).add(row["split"])
        assert row["tags"] == ["a", "b"]
    assert {len(of_customer) for of_customer in splits.values()} == {1}


def test_each_csv_says_by_its_header_what_its_columns_are(bench: Bench) -> None:
    bench.write(
        "x: float\n    y: float\n    note: str | None = None",
        'sources = (Csv("*.csv", label="above", event_id="id", encoding="cp1252"),)\n    splits = ByHash()',
    )
    bench.put(**{"1__csv": "", "2__csv": "id,x,y,above\n" + points(0, 100)})
    assert sum(bench.ingest().added.values()) == 100, "the first file has no columns"
    bench.put(**{"3__csv": ",note,y,above,x,id\n0,Caf\xe9,0.5,yes,1.5,1000\n".encode("cp1252")})
    assert sum(bench.ingest().added.values()) == 1, bench.quarantined()
    (added,) = (row for row in bench.rows() if row["event_id"] == "1000")
    assert (added["x"], added["y"], added["note"]) == (1.5, 0.5, "Café"), "by name, though the first has none"
    bench.put(**{"4__csv": ""})
    assert bench.ingest().added == {}, "of an hour without rows"
    two_lines = 'id,x,y,above,note\n7,1.5,0.5,yes,"first\nsecond"\n8,1.5,0.5,yes,third\n'
    for content, problem in (
        ("id,x,y\n7,1,2\n", r"no column 'above' in 4\.csv"),
        ("id,x,y,x,above\n7,1,2,3,yes\n", r"no column 'x' in 4\.csv; it has id, x1, y, x3, above"),
        (two_lines, r"4\.csv of \w+: a cell goes on in the next line \(line 3\)"),
    ):
        bench.put(**{"4__csv": content})
        with pytest.raises(BadInput, match=problem):
            bench.ingest()
    stray = '"I love it,2007,1.5,0.5,yes\nfine,2008,1.5,0.5,yes\n"so, so",2009,1.5,0.5,no\n'
    bench.put(**{"4__csv": f"note,id,x,y,above\n{stray}"})
    assert sum(bench.ingest().added.values()) == 2, "a stray quote costs its row alone"
    assert len(bench.rows()) == 103


def test_texts_that_are_not_in_the_encoding_are_refused_before_two_become_one(bench: Bench) -> None:
    bench.write("text: str", 'sources = (Csv("a.csv", label="above", event_id="id"),)\n    splits = ByHash()')
    rows = "".join(f"{n},the {n}th,yes\n" for n in range(50))
    bench.put(a__csv=("id,text,above\n" + rows).encode() + "M\xfcller,a,yes\nM\xf6ller,b,yes\n".encode("cp1252"))
    found = bench.ingest()
    assert (sum(found.added.values()), found.quarantined, found.duplicates) == (50, 2, 0)
    bench.write("text: str", 'sources = (Lines("b"),)\n    splits = ByHash()')
    bench.put(b="\n".join(f"{n}" for n in range(20)).encode("utf-16-le"))
    assert bench.ingest().quarantined == 20, "each has zero bytes"


def test_a_row_that_python_cannot_hold_does_not_stop_the_others(bench: Bench) -> None:
    bench.write("at: datetime\n    text: str", 'sources = (JsonLines("a", label="above"),)\n    splits = ByHash()')
    good = [json.dumps({"at": "2026-01-01T00:00:00Z", "text": f"{n}", "above": "yes"}) for n in range(50)]
    late = json.dumps({"at": "9999-12-31T23:59:59-05:00", "text": "late", "above": "yes"})
    latin = '{"at": "2026-01-01T00:00:00Z", "text": "caf\xe9", "above": "yes"}'.encode("latin-1")
    bench.put(a="\n".join([*good, late]).encode() + b"\n" + latin)
    found = bench.ingest()
    assert (sum(found.added.values()), found.quarantined) == (50, 2), bench.quarantined()
    assert {reason for _, reason, _ in bench.quarantined()} == {"OverflowError", "UnicodeDecodeError"}


def test_parquet_files_of_several_programs_mean_what_each_says(bench: Bench) -> None:
    bench.write(
        "class Place(__import__('pydantic').BaseModel):\n"
        "        lon: float\n        lat: float\n"
        "    at: datetime\n    amount: float\n    count: int | None\n    place: Place\n"
        "    sizes: dict[str, int] | None = None\n    merchant: str | None = None",
        'sources = (Parquet("*.parquet", columns={"at": "Event Time"}, label="above", event_id="id"),)\n'
        "    splits = ByHash(train=0.5, test=0.5)",
    )
    at, place = pd.Timestamp("2026-03-01 12:00:00"), {"lat": 52.5, "lon": 13.4}
    first = pa.table(
        {
            "id": ["a", "b"],
            "Event Time": pa.array([at, at], pa.timestamp("ns")),
            "seen": pa.array([[at], []], pa.list_(pa.timestamp("ns"))),
            "amount": pa.array([19, 20]),
            "count": pa.array([1.0, float("nan")]),
            "place": [place, place],
            "above": ["yes", "no"],
        }
    )
    second = pa.table(
        {
            "id": ["c", "d", "e", "f"],
            "Event Time": pa.array([1_772_366_400_000] * 4),
            "amount": pa.array([Decimal("19.99")] * 4, pa.decimal128(10, 2)),
            "count": pa.array([2.0, 19.99, None, 3.0]),
            "place": pa.array([place] * 4, pa.struct([("lat", pa.float64()), ("lon", pa.float64())])),
            "above": ["yes", "yes", None, "no"],
            "merchant": ["zen"] * 4,
            "sizes": pa.array([[("s", 2.0)]] * 3 + [[("s", 3.7)]], pa.map_(pa.string(), pa.float64())),
        }
    )
    for name, table in (("1__parquet", first), ("2__parquet", second)):
        written = io.BytesIO()
        pq.write_table(table, written)
        bench.put(**{name: written.getvalue()})
    found = bench.ingest()
    assert (sum(found.added.values()), found.quarantined, found.unlabelled) == (4, 2, 1), bench.quarantined()
    rows = {row["event_id"]: row for row in bench.rows()}
    assert {row["at"] for row in rows.values()} == {at.to_pydatetime()}
    assert {key: row["amount"] for key, row in rows.items()} == {"a": 19.0, "b": 20.0, "c": 19.99, "e": 19.99}
    assert {key: row["count"] for key, row in rows.items()} == {"a": 1, "b": None, "c": 2, "e": None}
    assert {(row["place"]["lon"], row["place"]["lat"]) for row in rows.values()} == {(13.4, 52.5)}
    assert {key: row["merchant"] for key, row in rows.items()} == {"a": None, "b": None, "c": "zen", "e": "zen"}
    assert {key: row["label"] for key, row in rows.items()} == {"a": "yes", "b": "no", "c": "yes", "e": None}
    assert {key: dict(row["sizes"] or {}) for key, row in rows.items()} == {
        "a": {},
        "b": {},
        "c": {"s": 2},
        "e": {"s": 2},
    }
    assert sorted(b'"count":19.99' in record for _, _, record in bench.quarantined()) == [False, True]
    assert sum(b'"s":3.7' in record for _, _, record in bench.quarantined()) == 1
    written = io.BytesIO()
    pq.write_table(first.set_column(0, "id", pa.array([1.0, 2.0])), written)
    bench.put(**{"3__parquet": written.getvalue()})
    with pytest.raises(BadInput, match="'id', are floating-point numbers"):
        bench.ingest()


def test_no_group_is_divided_by_rows_of_which_some_were_passed_over(bench: Bench) -> None:
    bench.write(
        "class Site(str, __import__('enum').Enum):\n        A, B, C = 'a', 'b', 'c'\n    site: Site",
        'sources = (Csv("train/", label="above", split="train"), Csv("test/", label="above", split="test"))\n'
        '    splits = BySource(group="site")',
    )
    bench.put(train_of_1__csv="site,above\na,yes\n", test_of_1__csv="site,above\nb,no\n")
    bench.ingest()
    bench.put(train_of_2__csv="site,above\nc,yes\n")
    assert bench.ingest().passed_over == 2
    bench.put(test_of_2__csv="site,above\na,no\n")
    with pytest.raises(BadInput, match=r"site 'a' of .* is in the splits 'train' and 'test'"):
        bench.ingest()


def test_no_group_is_divided_by_files_that_write_it_in_several_types(bench: Bench) -> None:
    bench.write(
        "x: float",
        'sources = (Parquet("train/", label="above", split="train"), Parquet("test/", label="above", split="test"))\n'
        '    splits = BySource(group="engine")',
    )

    def rows(x: float, *engines: float) -> bytes:
        written, count = io.BytesIO(), len(engines)
        columns = {"engine": engines, "x": [x + n for n in range(count)], "above": ["yes"] * count}
        pq.write_table(pa.table(columns), written)
        return written.getvalue()

    bench.put(train_of_1__parquet=rows(0.0, 1, 5), test_of_1__parquet=rows(10.0, 2.0, 5.0))
    with pytest.raises(BadInput, match=r"engine '5' of .* is in the splits 'train' and 'test'"):
        bench.ingest()

    bench.write(
        "x: float = 0.0\n    engine: float | None = None",
        'sources = (Csv("train.csv", label="above", split="train"), Csv("test.csv", label="above", split="test"))\n'
        '    splits = BySource(group="engine")',
    )
    bench.put(train__csv="engine,above\n5,yes\n", test__csv="engine,above\n2.5,no\n")
    bench.ingest()
    bench.put(train__csv="engine,above\n6,yes\n", test__csv="engine,above\n5.0,no\n")
    with pytest.raises(BadInput, match="engine '5' of"):
        bench.ingest()


def test_parquet_by_time_leaves_out_and_counts_what_is_in_no_interval(bench: Bench) -> None:
    bench.write(
        "x: float\n    y: int",
        'sources = (Parquet("2018-*.parquet", columns={"x": "AMOUNT", "y": "COUNT"}, label="FRAUD", event_id="ID"),)\n'
        '    splits = ByTime("AT", train=("2018-07-01", "2018-07-03"), validation=("2018-07-03", "2018-07-04"),\n'
        '                    test=("2018-07-05", "2018-07-06"))\n'
        '    objective = Classification(("0", "1"))',
    )
    for day in range(1, 7):
        frame = pd.DataFrame(
            {
                "ID": range(day * 10, day * 10 + 10),
                "AT": pd.Timestamp(2018, 7, day) + pd.to_timedelta(range(10), unit="h"),
                "AMOUNT": [float(day)] * 10,
                "COUNT": ["7"] * 9 + ["seven" if day == 1 else "8"],
                "FRAUD": [0, 1] * 5,
            }
        )
        raw = io.BytesIO()
        frame.astype({"AT": "datetime64[ns]"}).to_parquet(raw, index=False)
        bench.put(**{f"2018-07-0{day}__parquet": raw.getvalue()})
    found = bench.ingest()
    assert found.added == {"train": 19, "validation": 10, "test": 10}
    assert (found.left_out, found.quarantined) == (20, 1)
    (refused,) = bench.rows("quarantine")
    assert json.loads(bytes(refused["record"])) == {"AMOUNT": 1.0, "COUNT": "seven"}
    assert "y" in refused["detail"]
    assert {(row["event_id"], row["y"], row["label"]) for row in bench.rows() if row["event_id"] in ("20", "39")} == {
        ("20", 7, "0"),
        ("39", 8, "1"),
    }


def test_images_are_labelled_by_their_folders(bench: Bench) -> None:
    bench.write(
        "image: Annotated[bytes, *grey_image(2, 2)]",
        'sources = (Images("train/", split="train"), Images("test/", split="test"))',
    )
    bench.put(
        **{
            "train_of_yes_of_1__png": png(bytes([0, 1, 2, 3])),
            "train_of_no_of_1__png": png(bytes([3, 2, 1, 0])),
            "train_of_no_of_note__png": "no image",
            "test_of_yes_of_1__png": png(bytes([9, 9, 9, 9])),
            "test_of_2__png": png(bytes([8, 8, 8, 8])),
        }
    )
    found = bench.ingest()
    assert (found.added, found.quarantined, found.unlabelled) == ({"train": 2, "test": 2}, 1, 1)
    assert {(row["source"], row["label"], bytes(row["image"])) for row in bench.rows()} == {
        ("train/yes/1.png", "yes", bytes([0, 1, 2, 3])),
        ("train/no/1.png", "no", bytes([3, 2, 1, 0])),
        ("test/yes/1.png", "yes", bytes([9, 9, 9, 9])),
        ("test/2.png", None, bytes([8, 8, 8, 8])),
    }
    key = raw_key(bench.name, "train/yes/1.png")
    digest = {"sha256": bench.store.digest(key) or ""}
    bench.store.client.put_object(Bucket=bench.store.bucket, Key=key, Body=png(bytes(4)), Metadata=digest)
    with pytest.raises(CorruptObject, match=r"train/yes/1\.png has SHA-256 .* upload the original again"):
        bench.ingest()


def png(grey: bytes) -> bytes:
    """A 2×2 PNG. Source: PNG specification (third edition), section 5."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + grey[first : first + 2] for first in (0, 2))
    header = struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


_EXAMPLES = """
    def examples(self, source, raw):
        for number, line in enumerate(b"".join(raw[name] for name in source.objects).split()):
            yield {ROW}
"""


def raw_sources(row: str, *sources: str) -> str:
    return f"sources = ({', '.join(sources)},)\n{_EXAMPLES.replace('ROW', row)}"


def test_raw_sources_may_share_objects_and_a_corrupt_one_refuses_all(bench: Bench) -> None:
    row = '"event_id": f"{source.split}-{number}", "x": float(number), "y": 0.0, "label": line.decode()'
    bench.write(
        "x: float\n    y: float",
        raw_sources(row, 'Source(split="train", objects=("both",))', 'Source(split="test", objects=("both",))'),
    )
    bench.put(both="yes no yes")
    assert bench.ingest().added == {"train": 3, "test": 3}

    bench.write(
        "x: float\n    y: float",
        raw_sources(
            row.replace("source.split", "source.split}-{len(source.objects)"),
            'Source(split="train", objects=("both", "more"))',
            'Source(split="test", objects=("both", "other"))',
        ),
    )
    bench.put(more=" no", other=" maybe")
    found = bench.ingest()
    assert (found.added, found.quarantined) == ({"train": 4, "test": 3}, 1)

    key = raw_key(bench.name, "other")
    digest = {"sha256": bench.store.digest(key) or ""}
    bench.store.client.put_object(Bucket=bench.store.bucket, Key=key, Body=b"changed", Metadata=digest)
    with pytest.raises(CorruptObject, match="raw/other has SHA-256"):
        bench.ingest()


@pytest.mark.parametrize("failure", ["next(iter(()))", "1 / 0"])
def test_what_examples_raises_is_told_by_name(bench: Bench, failure: str) -> None:
    sources = 'Source(split="train", objects=("a",))', 'Source(split="test", objects=("b",))'
    bench.write("x: float\n    y: float", raw_sources(f'"x": {failure}', *sources))
    bench.put(a="yes", b="no")
    with pytest.raises(BadInput, match=r"examples\(\) failed on [ab]: .*application\.py, line"):
        bench.ingest()


def test_rows_that_would_leak_into_another_split_are_refused_by_name(bench: Bench) -> None:
    event, header = "x: float\n    y: float\n    patient: str", "x,y,patient,id,label\n"

    def declare(table: str, splits: str = "") -> None:
        bench.write(
            event, f'sources = (Csv("a.csv", {table}split="train"), Csv("b.csv", {table}split="test"))\n    {splits}'
        )

    def refused(match: str) -> None:
        with pytest.raises(BadInput, match=match):
            bench.ingest()
        assert bench.rows() == bench.rows("quarantine") == []

    declare('label="label", event_id="id", ')
    bench.put(
        a__csv=header + "1,2,ann,i1,yes\n1,2,bob,i2,yes\n1,x,,,\n", b__csv=header + "3,4,ann,i3,yes\n3,4,eve,i2,no\n"
    )
    refused(r"event 'i2' of \w+ is in the splits 'train' and 'test'")
    declare('label="label", ', 'splits = BySource(group="patient")')
    refused(r"patient 'ann' of \w+ is in the splits 'train' and 'test'")

    bench.put(b__csv=header + "3,4,eve,i3,\n")
    refused(r"the split 'test' of \w+ would have no labelled rows; 1 rows were refused.*; 1 rows have no label")
    declare('label="verdict", ')
    refused(r"a\.csv has no column 'verdict'; it has x, y, patient, id, label")


def test_a_table_of_an_earlier_release_takes_rows_without_a_label(bench: Bench) -> None:
    bench.write("text: str", 'sources = (Lines("a", label="yes", split="train"), Lines("b", split="test"))')
    bench.spark.sql(f"CREATE NAMESPACE lake.{bench.name}")
    bench.spark.sql(
        f"CREATE TABLE lake.{bench.name}.examples (event_id STRING NOT NULL, split STRING NOT NULL, "
        "text STRING NOT NULL, label STRING NOT NULL, source STRING NOT NULL, source_sha256 STRING NOT NULL, "
        "code_version STRING NOT NULL, "
        "ingested_at TIMESTAMP NOT NULL) USING iceberg PARTITIONED BY (split)"
    )
    for _ in range(2):
        create_tables(bench.spark, bench.packed.load())
        assert bench.spark.table(f"lake.{bench.name}.examples").schema["label"].nullable


def test_an_object_more_under_a_prefix_of_raw_ones_is_a_call_more_and_adds_its_rows_alone(bench: Bench) -> None:
    row = '"event_id": f"{source.objects[0]}-{number}", "x": float(len(raw)), "y": 0.0, "label": line.decode()'
    bench.write(
        "x: float\n    y: float",
        raw_sources(row, 'Source(split="train", objects=("days/",))', 'Source(split="test", objects=("t*.txt",))'),
    )
    bench.put(days_of_1="yes no", days_of_2="yes", t1__txt="no")
    version = bench.packed.code_version
    assert bench.ingest().added == {"train": 3, "test": 1}
    assert {row["x"] for row in bench.rows()} == {1.0}, "each call has one object"
    before = bench.rows()
    bench.put(days_of_3="no no")
    more = bench.ingest()
    assert (more.added, more.corrected, bench.packed.code_version) == ({"train": 2}, {}, version)
    assert [row for row in bench.rows() if row["source"] != "days/3"] == before


def test_an_object_that_no_worker_can_hold_is_told_by_name(bench: Bench) -> None:
    sources = 'Source(split="train", objects=("a",))', 'Source(split="test", objects=("b",))'
    bench.write("x: float\n    y: float", raw_sources('"x": bytearray(1 << 60)', *sources))
    bench.put(a="yes", b="no")
    with pytest.raises(BadInput, match=r"a worker's memory cannot hold [ab]; divide it into several objects"):
        bench.ingest()


def test_of_copies_of_an_event_in_one_run_the_last_counts_however_often_it_is_ingested(bench: Bench) -> None:
    bench.write(
        "x: float\n    y: int",
        'sources = (Parquet("*.parquet", label="above", event_id="id", split="train"), '
        'Csv("t.csv", label="above", split="test"))',
    )
    rows = 20_000
    frame = pd.DataFrame({"id": [n % 10 for n in range(rows)], "x": 1.0, "y": range(rows), "above": "yes"})
    raw = io.BytesIO()
    frame.to_parquet(raw, index=False, row_group_size=100)
    bench.put(a__parquet=raw.getvalue(), t__csv="x,y,above\n1,1,no\n")
    bench.spark.conf.set("spark.sql.files.maxPartitionBytes", "20000")
    try:
        first = bench.ingest()
        assert (first.added, first.duplicates) == ({"train": 10, "test": 1}, rows - 10)
        bench.spark.conf.set("spark.sql.files.maxPartitionBytes", "7000")
        assert bench.ingest().corrected == {}
    finally:
        bench.spark.conf.unset("spark.sql.files.maxPartitionBytes")
    kept = sorted(row["y"] for row in bench.rows() if row["split"] == "train")
    assert kept == list(range(rows - 10, rows))


def test_rows_whose_label_the_objective_does_not_know_any_more_are_left_out_and_counted(bench: Bench) -> None:
    event = "x: float\n    y: float"
    body = 'sources = (Csv("a.csv", label="label", split="train"), Csv("b.csv", label="label", split="test"))'
    bench.write(event, body)
    train, test = ("x,y,label\n" + "".join(f"{n},{y},no\n" for n in range(97)) for y in (1, 2))
    bench.put(a__csv=train + "97,1,yes\n98,1,yes\n99,1,yes\n", b__csv=test)
    bench.ingest()
    bench.write(event, f'{body}\n    objective = Classification(("no", "maybe"))')
    shards = prepare(bench.spark, bench.settings, bench.packed, data_set(bench.spark, bench.packed))
    assert {each.split: (each.rows, each.refused) for each in shards} == {"train": (97, 3), "test": (97, 0)}
    assert "label 'yes' is not one of" in str([each.first_refusal for each in shards])
    bench.write(event, f'{body}\n    objective = Classification(("yes", "maybe"))')
    with pytest.raises(
        BadInput, match=r"194 rows of \w+ cannot be prepared, the first because label 'no' is not one of"
    ):
        prepare(bench.spark, bench.settings, bench.packed, data_set(bench.spark, bench.packed))
