"""IDX files are read whole or refused by name."""

import gzip

import numpy as np
import pytest

from deeplambda.errors import CorruptObject
from deeplambda.idx import read_idx, write_idx

ARRAY = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def test_what_was_written_is_read() -> None:
    np.testing.assert_array_equal(read_idx(write_idx(ARRAY), "a"), ARRAY)
    np.testing.assert_array_equal(read_idx(gzip.decompress(write_idx(ARRAY)), "a"), ARRAY)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x1f\x8b",
        b"\0\0\x0d\x01\0\0\0\0",
        write_idx(ARRAY)[:-9],
        write_idx(ARRAY)[:20],
        gzip.decompress(write_idx(ARRAY))[:-1],
        gzip.decompress(write_idx(ARRAY)) + b"!",
        gzip.decompress(write_idx(ARRAY))[:9],
    ],
)
def test_a_damaged_file_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(CorruptObject, match="train-images"):
        read_idx(raw, "train-images")
