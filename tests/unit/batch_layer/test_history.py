"""Decisions about versions, as people and Hive see them."""

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from batch_layer.lake_rows import verdict_rows
from batch_layer.model_commands import drift_table, history_table
from deeplambda.adapters.lake import TABLES
from deeplambda.clock import now
from deeplambda.records.verdict import Verdict
from tests.unit.batch_layer.test_verdicts import measured, right

COMPARISONS = measured(right(960), right(950))
DECISION: dict[str, Any] = {
    "id": 7,
    "kind": "rejected",
    "version": 2,
    "champion": 1,
    "at": now(),
    "who": "ada",
    "why": "new labels",
    "reason": "it is worse [by far]",
    "verdict": Verdict(version=2, comparisons=COMPARISONS, figures={"latency_ms": 1.5}).model_dump(mode="json"),
}


def shown(table: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_hive_gets_a_row_for_each_comparison_or_one_for_a_decision_without_any() -> None:
    columns = {column.split()[0] for column in TABLES["verdicts"][0].split(", ")}
    rows = verdict_rows(DECISION)
    assert len(rows) == len(COMPARISONS)
    assert {name for row in rows for name in row} == columns
    assert (rows[0]["decision"], rows[0]["candidate"], rows[0]["figures"]) == ("rejected/7", 0.96, '{"latency_ms":1.5}')
    (bare,) = verdict_rows(DECISION | {"verdict": None})
    assert bare["decision"] == "rejected/7"


def test_the_history_says_who_decided_what_why_and_on_which_figures() -> None:
    text = shown(history_table([SimpleNamespace(**DECISION)]))
    for wanted in ("2 rejected", "ada: new labels", "it is worse [by far]", "accuracy 0.9600, champion 1 0.9500"):
        assert wanted in text


def test_windows_of_drift_are_shown_with_their_clearest_field() -> None:
    window = SimpleNamespace(
        what="inputs",
        version=2,
        last_at=now(),
        value=41_000.0,
        threshold=30_000.0,
        drifted=True,
        evidence={"fields": [{"field": "image[0,1]", "p": 1e-18, "psi": 0.5}]},
    )
    text = shown(drift_table([window]))
    assert "image[0,1]: p 1e-18, PSI 0.50" in text
    assert "4.1e+04" in text
