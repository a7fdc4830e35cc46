"""Reader and writer of IDX, the format of the MNIST files.

Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, section "FILE FORMATS".
"""

import gzip
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from deeplambda.errors import CorruptObject

_UNSIGNED_BYTE = 0x08


def read_idx(raw: bytes, name: str) -> NDArray[np.uint8]:
    """The array in `raw` (IDX of unsigned bytes, gzipped or not), uint8 of the shape that its header gives.

    Raises: CorruptObject when bytes are missing, left over or not IDX; `name` says of which object.
    """
    remedy = "upload the original file again: 'deeplambda data put'"
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as exc:
            raise CorruptObject(f"{name} is not a whole gzip file: {exc}", remedy) from exc
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _UNSIGNED_BYTE:
        raise CorruptObject(f"{name} does not begin with the magic number of an IDX file of unsigned bytes", remedy)
    header_bytes = 4 + 4 * raw[3]
    if len(raw) < header_bytes:
        raise CorruptObject(f"{name} ends within its header", remedy)
    shape = struct.unpack(f">{raw[3]}I", raw[4:header_bytes])
    expected, found = int(np.prod(shape, dtype=np.int64)), len(raw) - header_bytes
    if expected != found:
        raise CorruptObject(f"{name} holds {found} bytes of data, its header says {expected}", remedy)
    return np.frombuffer(raw, dtype=np.uint8, offset=header_bytes).reshape(shape)


def write_idx(array: NDArray[np.uint8]) -> bytes:
    """`array` as a gzipped IDX file."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, _UNSIGNED_BYTE, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)
