"""`deeplambda check`, and what a user's tests import beside the check."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeplambda.errors import CorruptObject, NotReady
from deeplambda.testing import FakeBroker, FakeStore, commands
from deeplambda.testing.findings import Finding, Report

BROKEN = """
from deeplambda.application import Application, Event


class Seen(Event):
    parts: set[int]


class Small(Application):
    name = "small"
    event = Seen

    def examples(self, source, raw):
        return iter(())

    def transform(self, batch):
        return None

    def build_model(self):
        return None
"""


def test_what_is_wrong_is_shown_within_eighty_columns_and_makes_the_exit_code_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPLAMBDA_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "application.py").write_text(BROKEN)
    done = CliRunner().invoke(commands.check, [str(tmp_path / "small")])
    assert done.exit_code == 1, done.output
    assert "application.py" in done.output
    assert "set[int]" in done.output
    assert "transform" in done.output, "what was not tried is listed"
    assert max(map(len, done.output.splitlines())) <= 80


def test_a_name_that_is_nowhere_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAMBDA_DATA_DIR", str(tmp_path / "data"))
    done = CliRunner().invoke(commands.check, ["nowhere"])
    assert done.exit_code == 1
    assert "nowhere" in done.output


def test_a_finding_is_one_line_with_its_place() -> None:
    finding = Finding(check="event", problem="it is wrong", remedy="right it", file="application.py", line=3)
    assert str(finding) == "application.py:3: it is wrong; right it"
    assert not Report(application="small").findings


def test_the_fake_broker_keeps_what_was_flushed_and_can_be_down() -> None:
    with FakeBroker() as broker:
        broker.send("small.events", "1", {"a": 1})
        assert broker.records("small.events") == []
        broker.down = True
        with pytest.raises(NotReady):
            broker.flush()
        broker.down = False
    assert [(record.key, record.value, record.offset) for record in broker.records("small.events")] == [
        (b"1", b'{"a":1}', 0)
    ]


def test_the_fake_store_notices_damage() -> None:
    store = FakeStore()
    store.put("small/raw/a", b"content")
    assert [(found.key, found.bytes) for found in store.list("small/")] == [("small/raw/a", 7)]
    store.damage("small/raw/a")
    with pytest.raises(CorruptObject):
        store.get("small/raw/a")
