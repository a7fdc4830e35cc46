"""What `deeplambda model list` prints on a terminal of 80 columns."""

import io
from datetime import UTC, datetime

from rich.console import Console

from batch_layer.model_commands import versions_table
from deeplambda.features import Tensor
from deeplambda.state.card import Card

METRICS = ["accuracy", "negative_log_loss", "macro_f1"]


def card(version: int, code_version: str) -> Card:
    return Card(
        application="digits",
        version=version,
        run="r",
        dataset="d",
        snapshot=2**62,
        code_version=code_version,
        hyperparameters={},
        metrics=dict.fromkeys(METRICS, 0.98765),
        parameters=1,
        features={"features": Tensor()},
        output_size=10,
        weights_sha256="0" * 64,
        onnx_sha256="0" * 64,
        trained_rows=1_234_567,
        training_s=1,
        device="cpu",
        torch_version="2",
        created_at=datetime(2026, 11, 21, tzinfo=UTC),
    )


def test_names_and_code_versions_are_whole() -> None:
    cards = [card(12, "a" * 12), card(11, "b" * 12)]
    console = Console(file=io.StringIO(), width=80)
    console.print(versions_table(cards, cards[0], dict.fromkeys(METRICS, False), "a" * 12))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("accuracy", "macro_f1", "a" * 12, "b" * 12, "0.9877", "1,234,567", "★", "not deployed"):
        assert word in shown
