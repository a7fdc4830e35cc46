import numpy as np
import pytest
from safetensors.numpy import save

from batch_layer.shard_format import manifest_key, read_shard, shard_key, write_shard
from deeplambda.errors import BadInput, CorruptObject
from deeplambda.features import chosen

FEATURES = {
    "pixels": np.arange(24, dtype=np.float32).reshape(4, 1, 2, 3),
    "words": np.array([[12_345, 7], [2**40 + 1, -1], [0, 3], [16_777_217, 257]]),
    "known": np.array([True, False, False, True]),
}
LABELS_N = np.array([3, 1, 2, 0])


def test_a_shard_comes_back_as_it_was_written() -> None:
    features, labels_N = read_shard(write_shard(FEATURES, LABELS_N))
    assert features.keys() == FEATURES.keys()
    for name, array in FEATURES.items():
        np.testing.assert_array_equal(features[name], array)
        assert features[name].dtype == array.dtype
    np.testing.assert_array_equal(labels_N, LABELS_N)
    assert labels_N.dtype == np.int64


def test_equal_rows_give_equal_bytes_whatever_their_layout_in_memory() -> None:
    other_layout = {name: np.asfortranarray(array) for name, array in FEATURES.items()}
    assert write_shard(FEATURES, LABELS_N) == write_shard(other_layout, LABELS_N)


def test_a_shard_without_rows_is_a_shard() -> None:
    features, labels_N = read_shard(write_shard(chosen(FEATURES, slice(0)), LABELS_N[:0]))
    assert (features["pixels"].shape, labels_N.shape) == ((0, 1, 2, 3), (0,))
    nothing, labels_N = read_shard(write_shard({}, LABELS_N[:0]))
    assert (nothing, labels_N.shape) == ({}, (0,))


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(write_shard(FEATURES, LABELS_N)[:-1], id="a byte short"),
        pytest.param(write_shard(FEATURES, LABELS_N) + b"\0", id="a byte long"),
        pytest.param(b"\xff" * 64, id="a header of 2**64 bytes"),
        pytest.param((90_000_000).to_bytes(8, "little") + b"{" + b" " * 64, id="a header longer than the file"),
        pytest.param(b"\x80\x04cos\nsystem\n", id="a pickle"),
        pytest.param(save({"feature.words": FEATURES["words"]}), id="no labels"),
        pytest.param(save({"feature.words": FEATURES["words"], "labels": LABELS_N[:3]}), id="a label too few"),
        pytest.param(save({"features": FEATURES["words"], "labels": LABELS_N}), id="the first form"),
    ],
)
def test_what_is_no_whole_shard_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(CorruptObject, match=r"s3://bucket/train-00001.*batch prepare"):
        read_shard(raw, "s3://bucket/train-00001")


def test_features_that_are_not_finite_are_not_written() -> None:
    pixels = FEATURES["pixels"].copy()
    pixels[2, 0, 0, 0] = np.nan
    with pytest.raises(BadInput, match="1 rows, the first is row 2"):
        write_shard(FEATURES | {"pixels": pixels}, LABELS_N)


def test_rows_without_labels_are_refused() -> None:
    with pytest.raises(BadInput, match="4 rows"):
        write_shard(FEATURES, LABELS_N[:3])


def test_keys_are_the_published_ones() -> None:
    assert shard_key("digits", "ab12", "train", 7) == "digits/prepared/ab12/train-00007.safetensors"
    assert manifest_key("digits", "ab12") == "digits/prepared/ab12/manifest.json"
