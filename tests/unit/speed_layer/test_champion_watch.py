"""A champion that cannot be loaded now is tried again where another try may help."""

from pathlib import Path

import pytest
import torch

from deeplambda.config import Settings
from deeplambda.errors import BadInput, CorruptObject, NotReady, UnfitModel
from deeplambda.records.lifecycle import ModelPromoted
from speed_layer.model_service import champions
from speed_layer.model_service.champions import ChampionWatch

PROMOTED = ModelPromoted(application="digits", version=2, previous=1, weights_sha256="ab" * 32)


@pytest.mark.parametrize(
    ("exc", "tries"),
    [
        (NotReady("S3 is away"), 3),
        (MemoryError("a large request was in memory"), 3),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."), 3),
        (OSError(28, "No space left on device"), 3),
        (BadInput("no object", "restore it"), 3),
        (CorruptObject("other weights", "restore them"), 3),
        (UnfitModel("outputs that are not finite"), 1),
        (RuntimeError("of the application's own code"), 1),
    ],
)
def test_what_may_be_mended_meanwhile_is_loaded_again(
    exc: Exception, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, moment = list[str](), 0.0

    def load(*_: object) -> None:
        raise exc

    monkeypatch.setattr(champions, "load_champion", load)
    monkeypatch.setattr(champions.time, "monotonic", lambda: moment)
    watch = ChampionWatch(Settings(data_dir=tmp_path), "digits", on_swap=lambda *_: None, on_failure=failures.append)
    watch._read_promotion(b"digits", PROMOTED.model_dump_json().encode())
    for _ in range(3):
        watch._load_pending()
        watch._load_pending()
        moment += 120.0
    assert len(failures) == tries, "once in each two minutes, and not again at once"
    assert "digits/2' not loaded" in (watch.error or "")


def test_an_order_that_nobody_waits_for_any_more_is_not_carried_out(tmp_path: Path) -> None:
    swaps = list[int]()
    watch = ChampionWatch(
        Settings(data_dir=tmp_path),
        "digits",
        on_swap=lambda _, version: swaps.append(version),
        on_failure=lambda _: None,
    )
    given_up, wanted = watch.unload(), watch.load()
    assert given_up.cancel()
    watch._follow_orders()
    assert watch._is_wanted
    assert not swaps
    with pytest.raises(NotReady):
        wanted.result(0)
