"""`deeplambda new`: what is drafted after a sample runs, and keeps the contract on that sample."""

import csv
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deeplambda.cli import build
from deeplambda.errors import BadInput, ConfigurationError
from deeplambda.testing import check_application
from deeplambda.testing.draft import write_draft

ROWS = 240


@pytest.fixture(autouse=True)
def _own_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAMBDA_DATA_DIR", str(tmp_path / "data"))


def _table() -> list[dict[str, object]]:
    """Numbers, a category, a text, a column with gaps; what decides is the first number."""
    draw = random.Random(0)
    words = ["engine", "noise", "heat", "cold", "oil", "smoke", "quiet", "loud", "slow", "fast"]
    rows = []
    for number in range(ROWS):
        load = round(draw.uniform(-1, 1), 3)
        rows.append(
            {
                "row id": f"r{number}",
                "load": load,
                "max": draw.randint(0, 90),
                "maker": draw.choice(["acme", "zen", "ölwerk"]),
                "said": " ".join(draw.choices(words, k=6)),
                "gap": "" if number % 5 == 0 else round(draw.gauss(0, 3), 2),
                "class": "hot" if load > 0 else "cold",
            }
        )
    return rows


def _csv(folder: Path) -> Path:
    rows = _table()
    lines = [";".join(rows[0]), *(";".join(str(value) for value in row.values()) for row in rows)]
    (folder / "engines.csv").write_text("\n".join(lines) + "\n")
    return folder / "engines.csv"


def _wild_csv(folder: Path) -> Path:
    """As spreadsheets write it: cells of several lines, gaps, dates, names that are none in Python, three classes."""
    draw = random.Random(3)
    with (folder / "tickets.csv").open("w", encoding="utf-8-sig", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["Ticket Id", "Größe (m²)", "n°", "n", "created_at", "due", "body", "sentiment"])
        for number in range(ROWS):
            size = "" if number % 7 == 0 else round(draw.uniform(1, 90), 2)
            day = f"2024-02-{number % 28 + 1:02}"
            body = " ".join(draw.choices(["late", "broken", "fine", "thanks"], k=6)) + '\n"quoted", second line'
            label = draw.choice(["good", "bad", "so-so"])
            rows.writerow([number, size, draw.randint(0, 9), draw.random(), f"{day} 10:00:00", day, body, label])
    return folder / "tickets.csv"


def _json_lines(folder: Path) -> Path:
    rows = [{key: None if value == "" else value for key, value in row.items()} for row in _table()]
    (folder / "engines.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "engines.jsonl"


def _parquet(folder: Path) -> Path:
    rows = [{"load": row["load"], "speed": row["max"], "target": 40 * float(str(row["load"]))} for row in _table()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "engines.parquet")
    return folder


def _text(folder: Path) -> Path:
    draw = random.Random(1)
    for label, words in (("good", "fine happy lovely film"), ("bad", "dull sad boring film")):
        sentences = {" ".join([*draw.choices(words.split(), k=7), str(n)]) for n in range(60)}
        (folder / f"{label}.txt").write_text("\n".join(sorted(sentences)) + "\n")
    return folder


def _images(folder: Path) -> Path:
    from PIL import Image

    draw = random.Random(2)
    for label, colour in (("day", (240, 230, 200)), ("night", (10, 10, 40))):
        (folder / label).mkdir()
        for number in range(20):
            pixel = tuple(min(255, value + draw.randint(0, 40)) for value in colour)
            image = Image.new("RGB", (draw.randint(20, 90), draw.randint(20, 90)), pixel)
            kind, mode = (
                ("jpg", ("RGB", "L", "CMYK")[number % 3]) if number % 2 else ("png", ("RGBA", "P")[number % 4 // 2])
            )
            image.convert(mode).save(folder / label / f"{number}.{kind}")
    return folder


def _sixteen_bit_images(folder: Path) -> Path:
    import numpy as np
    from PIL import Image

    for label, brightness in (("lit", 40_000), ("dim", 4_000)):
        (folder / label).mkdir()
        for number in range(20):
            grey = np.full((24, 24), brightness + 300 * number, np.uint16)
            Image.fromarray(grey).save(folder / label / f"{number}.png")
    return folder


def _windows_csv(folder: Path) -> Path:
    rows = [f"{n};{'süß' if n % 2 else 'groß'} {n % 7};{'ja' if n % 2 else 'nein'}" for n in range(ROWS)]
    (folder / "wörter.csv").write_bytes("\n".join(["Länge;Wort;label", *rows]).encode("cp1252"))
    return folder / "wörter.csv"


def _text_in_folders(folder: Path) -> Path:
    draw = random.Random(4)
    for split, rows in (("train", 60), ("test", 20)):
        for label, words in (("pos", "fine happy lovely film"), ("neg", "dull sad boring film")):
            (folder / split / label).mkdir(parents=True)
            for n in range(rows):
                said = " ".join([*draw.choices(words.split(), k=7), split, str(n)])
                (folder / split / label / f"{n}.txt").write_text(said)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "index.bin").write_bytes(bytes(9))
    return folder


_SAMPLES = [_csv, _wild_csv, _windows_csv, _json_lines, _parquet, _text, _text_in_folders, _images, _sixteen_bit_images]


@pytest.mark.slow
@pytest.mark.parametrize("sample_of", _SAMPLES)
def test_what_is_drafted_after_a_sample_keeps_the_contract(sample_of, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "rows").mkdir()
    draft = write_draft("engines", sample_of(tmp_path / "rows"), tmp_path / "applications")
    assert draft.decisions >= 3
    report = check_application(draft.file.parent, tmp_path / "rows")
    assert not report.findings, [str(finding) for finding in report.findings]
    assert {"rows", "transform", "model", "artefacts"} <= set(report.passed)


def test_cells_of_several_lines_and_names_that_are_none_in_python_are_taken(tmp_path: Path) -> None:
    draft = write_draft("tickets", _wild_csv(tmp_path), tmp_path / "applications")
    written = draft.file.read_text()
    assert "multiline=True" in written
    assert '"Größe_m2": "Größe (m²)"' in written
    assert "n_2: float" in written, "two columns do not fill one field"
    assert 'event_id="Ticket Id", occurred_at="created_at"' in written
    assert 'Classification(("bad", "good", "so-so"))' in written


def test_what_is_in_a_column_s_name_never_becomes_code(tmp_path: Path) -> None:
    harmful = "x\nimport os; os.abort()  #"
    rows = [{"a": n, harmful: {"deep": n}, "label": "ab"[n % 2]} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    written = write_draft("mine", tmp_path / "rows.jsonl", tmp_path / "applications").file.read_text()
    assert not [line for line in written.splitlines() if line.startswith("import os")]
    rows = [{"a": n, harmful: "ab"[n % 2]} for n in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    written = write_draft("yours", tmp_path / "rows.parquet", tmp_path / "applications").file.read_text()
    assert not [line for line in written.splitlines() if line.startswith("import os")]


@pytest.mark.parametrize("name", ["none", "learned", "vocabulary"])
def test_a_name_that_python_or_the_draft_uses_is_not_the_class_s(name: str, tmp_path: Path) -> None:
    written = write_draft(name, _text(tmp_path), tmp_path / "applications").file.read_text()
    compile(written, name, "exec")
    assert f"class {name.title()}Application(Application)" in written


def test_a_number_is_predicted_from_where_the_labels_lie(tmp_path: Path) -> None:
    rows = [{"area": float(n), "city": "ab"[n % 2], "price": 3e5 + 1e3 * n} for n in range(60)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "houses.parquet")
    written = write_draft("houses", tmp_path, tmp_path / "applications").file.read_text()
    assert 'label="price"' in written
    assert "MEAN, SPREAD = 3.295e+05, 1.732e+04" in written


def test_the_label_is_the_column_that_is_named(tmp_path: Path) -> None:
    rows = [{"failure": "ny"[n % 2], "pressure": n / 7, "vibration": n / 9} for n in range(60)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pumps.parquet")
    guessed = write_draft("guessed", tmp_path / "pumps.parquet", tmp_path / "applications")
    assert 'the label is taken to be "vibration"' in guessed.summary
    named = write_draft("named", tmp_path / "pumps.parquet", tmp_path / "applications", label="failure")
    assert 'label="failure"' in named.file.read_text()
    assert "    vibration: float" in named.file.read_text()
    with pytest.raises(BadInput, match="no column 'failures'; its columns are failure, pressure, vibration"):
        write_draft("wrong", tmp_path / "pumps.parquet", tmp_path / "applications", label="failures")


@pytest.mark.parametrize("sample_of", [_text, _images])
def test_files_that_are_labelled_by_their_names_have_no_column_for_it(sample_of, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match="leave out --label"):
        write_draft("mine", sample_of(tmp_path), tmp_path / "applications", label="kind")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"a/1.png": b"", "labels.txt": b"a"}, "images and other files: labels.txt"),
        ({"a/1.webp": b"RIFF\0\0", "b/2.webp": b"RIFF\0\0"}, "no table, no text, and no PNG or JPEG"),
        ({"1.txt": b"one", "2.log": b"two", "1.log": b"three"}, None),
        ({f"{n}.txt": b"a text" for n in range(60)}, "texts of 60 labels, by the names"),
        ({"notes.txt": b"a text"}, "texts of 1 labels, by the names"),
    ],
)
def test_files_that_say_no_label_are_refused_with_the_layout_that_does(
    files: dict[str, bytes], problem: str | None, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(content)
    if problem is None:
        draft = write_draft("mine", tmp_path / "files", tmp_path / "applications")
        assert 'the label is taken to be "the name: log, txt"' in draft.summary
        return
    with pytest.raises(BadInput, match=problem):
        write_draft("mine", tmp_path / "files", tmp_path / "applications")


def test_several_files_of_one_kind_are_one_source_that_takes_later_ones(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / "rows" / str(number // 2)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"load": n + number, "label": "ab"[n % 2]}) for n in range(30)]
        (folder / f"part-{number}.jsonl").write_text("\n".join(lines))
    written = write_draft("parts", tmp_path / "rows", tmp_path / "applications").file.read_text()
    assert [line.strip() for line in written.splitlines() if "JsonLines(" in line] == [
        'JsonLines("0/*.jsonl", label="label"),',
        'JsonLines("1/part-2.jsonl", label="label"),',
    ]


def test_the_command_writes_says_what_is_next_and_does_not_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPLAMBDA_APPLICATIONS_DIR", str(tmp_path / "applications"))
    from deeplambda.config import load_settings
    from deeplambda.testing import commands

    load_settings.cache_clear()
    (tmp_path / "rows").mkdir()
    sample = str(_csv(tmp_path / "rows"))
    done = CliRunner().invoke(commands.new, ["engines", "--from", sample])
    assert done.exit_code == 0, done.output
    assert "deeplambda check engines --data" in done.output
    written = (tmp_path / "applications" / "engines" / "application.py").read_text()
    assert 'columns={"max_value": "max"}' not in written
    assert 'label="class"' in written
    assert 'separator=";"' in written
    again = CliRunner().invoke(commands.new, ["engines", "--from", sample])
    assert isinstance(again.exception, ConfigurationError)
    assert "is there already" in str(again.exception)
    load_settings.cache_clear()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("Bad Name", "a,label\n1,x\n2,y\n", "cannot be an application's name"),
        ("fine", "", "no rows"),
        ("fine", "a,label\n1,x\n2,x\n", "1 values"),
        ("fine", 'a,label\n"' + "1,x\n" * 50_000, "no rows|1 values|cannot be read"),
    ],
)
def test_a_sample_that_nothing_can_be_made_of_is_refused(name: str, content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises((BadInput, ConfigurationError), match=problem):
        write_draft(name, tmp_path / "rows.csv", tmp_path / "applications")


def test_the_commands_are_listed() -> None:
    assert build(["--help"]) is not None


def test_what_several_rows_have_is_no_event_id_however_many_rows_lie_between(tmp_path: Path) -> None:
    def panel(customers: int, days: int) -> str:
        rows = [f"{n},{day},{n % 7},{'ab'[n % 2]}" for n in range(customers) for day in range(days)]
        return "\n".join(["customer_id,day,amount,label", *rows])

    (tmp_path / "panel.csv").write_text(panel(customers=300, days=30))
    written = write_draft("panel", tmp_path / "panel.csv", tmp_path / "applications").file.read_text()
    assert "event_id=" not in written
    (tmp_path / "once.csv").write_text(panel(customers=300, days=1))
    written = write_draft("once", tmp_path / "once.csv", tmp_path / "applications").file.read_text()
    assert 'event_id="customer_id"' in written
    assert '# DECIDE: "customer_id" as event id' in written


def _codes(kind: str, folder: Path) -> Path:
    draw = random.Random(5)
    rows = [
        {
            "PassengerId": 10**17 + number,
            "customerId": number % 90,
            "zip": f"{number % 70:05}",
            "price": f"{draw.uniform(1, 9):.2f}",
            "load": draw.uniform(-1, 1),
            "label": "ab"[draw.random() < 0.5],
        }
        for number in range(ROWS)
    ]
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_codes_are_no_magnitudes_and_typed_texts_stay_texts(kind: str, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    draft = write_draft("rides", _codes(kind, tmp_path / "rows"), tmp_path / "applications")
    written = draft.file.read_text()
    assert 'event_id="PassengerId"' in written
    assert "    customerId: str  # DECIDE: kept and not used" in written
    assert "    zip: str  # DECIDE: kept and not used" in written
    assert f"    price: {'float' if kind == 'csv' else 'str'}" in written
    assert "    load: float\n" in written
    report = check_application(draft.file.parent, tmp_path / "rows")
    assert not report.findings, [str(finding) for finding in report.findings]
