import pytest
import torch

from batch_layer.checkpoint import decode, encode, run_id
from deeplambda.errors import CorruptObject

TENSORS = {
    "model.0.weight": torch.randn(3, 2),
    "optimizer.0.step": torch.tensor(7.0),
    "counts": torch.tensor([1, 2], dtype=torch.int64),
}


def test_tensors_come_back_as_they_were() -> None:
    found = decode(encode(TENSORS), "checkpoint")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    "raw", [b"", encode(TENSORS)[:-1], b"\x80\x04cos\nsystem\n", (2**62).to_bytes(8, "little") + b"{"]
)
def test_what_is_no_whole_checkpoint_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(CorruptObject, match="checkpoint-00002"):
        decode(raw, "checkpoint-00002")


def test_a_run_is_named_by_its_data_code_and_hyperparameters() -> None:
    base = run_id("ab12", "c0de", {"epochs": 4, "seed": 0})
    assert base == run_id("ab12", "c0de", {"seed": 0, "epochs": 4})
    assert len(base) == 16
    assert set(base) <= set("0123456789abcdef")
    others = {
        run_id("cd34", "c0de", {"epochs": 4, "seed": 0}),
        run_id("ab12", "0ther", {"epochs": 4, "seed": 0}),
        run_id("ab12", "c0de", {"epochs": 5, "seed": 0}),
        run_id("ab12", "c0de", {"epochs": 4, "seed": 1}),
    }
    assert len(others | {base}) == 5
