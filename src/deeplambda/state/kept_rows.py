"""Kept rows: up to 64 real rows of the test split, kept with each version with their features and outputs.

Whoever loads the version checks itself on them: the code by the features, the weights by the outputs. Legend: N rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deeplambda.errors import CorruptObject, UnfitModel
from deeplambda.features import Features

LIMIT_ROWS = 64
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-3, 1e-4
"""Runtimes and processors add in different orders: about 1e-6 in fp32. A wrong operator is off by far more."""
_PAYLOAD, _OUTPUTS, _FEATURE = "payload", "outputs", "feature."


@dataclass(frozen=True, kw_only=True)
class KeptRows:
    """payload: N rows as `payload_schema` has them. outputs: the model's in fp32 on the CPU, (N, C) or (N,)."""

    payload: pa.RecordBatch
    features: Features
    outputs: NDArray[np.float32]

    def encode(self) -> bytes:
        """As one safetensors object."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {
            _PAYLOAD: np.frombuffer(encode_payload(self.payload), np.uint8),
            _OUTPUTS: np.ascontiguousarray(self.outputs),
            **{f"{_FEATURE}{name}": np.ascontiguousarray(array) for name, array in self.features.items()},
        }
        content: bytes = save(tensors)
        return content

    @classmethod
    def decode(cls, raw: bytes, name: str) -> "KeptRows":
        """Raises: CorruptObject; `name` says of which version."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(raw)
            return cls(
                payload=decode_payload(tensors.pop(_PAYLOAD).tobytes()),
                outputs=tensors.pop(_OUTPUTS),
                features={key.removeprefix(_FEATURE): array for key, array in tensors.items()},
            )
        except (SafetensorError, ValueError, KeyError, pa.ArrowInvalid) as exc:
            raise CorruptObject(f"the kept rows of {name} cannot be read: {exc}", "train and publish again") from exc

    def check_features(self, featurize: Callable[[pa.RecordBatch], Features], name: str) -> None:
        """Raises: UnfitModel when the code that is loaded gives other features than the version was made with."""
        found = featurize(self.payload)
        for key, kept in self.features.items():
            if key not in found or not _agree(found[key], kept):
                raise UnfitModel(
                    f"the code of {name} gives other features {key!r} than when it was published",
                    "its transform depends on something outside its folder: make it depend on the event alone",
                )

    def check_outputs(self, infer: Callable[[Features], NDArray[Any]], name: str) -> None:
        """Raises: UnfitModel when the model gives other outputs than when it was published, or infinite ones."""
        found = infer(self.features)
        if not np.isfinite(found).all():
            raise UnfitModel(f"{name} gives outputs that are not finite", "promote another version")
        if not _agree(found, self.outputs):
            raise UnfitModel(
                f"{name} gives other outputs on its kept rows than when it was published", "train and publish again"
            )


class PayloadWriter:
    """Payloads of rows as an Arrow file, which grows by what is written; no batch is held."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._file = schema, BytesIO()
        self._writer = pa.ipc.new_file(self._file, schema)

    def write(self, payload: pa.RecordBatch | pa.Table) -> None:
        """Add rows."""
        self._writer.write(payload.cast(self._schema))

    def finished(self) -> bytes:
        """The file's content, once all rows are written."""
        self._writer.close()
        return self._file.getvalue()


def encode_payload(payload: pa.RecordBatch | pa.Table) -> bytes:
    """As an Arrow file."""
    writer = PayloadWriter(payload.schema)
    writer.write(payload)
    return writer.finished()


def decode_payload(raw: bytes, limit: int | None = None) -> pa.RecordBatch:
    """The rows of an Arrow file; limit: no more than the first so many, and what else the file holds is let go.

    Raises: ArrowInvalid.
    """
    file = pa.ipc.open_file(pa.BufferReader(raw))
    batches: list[pa.RecordBatch] = []
    while len(batches) < file.num_record_batches and (limit is None or sum(map(len, batches)) < limit):
        batches.append(file.get_batch(len(batches)))
    table = pa.Table.from_batches(batches, file.schema)
    if limit is not None:
        table = table.take(pa.array(range(min(limit, table.num_rows))))
    table = table.combine_chunks()
    return table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], schema=table.schema)


def _agree(found: NDArray[Any], kept: NDArray[Any]) -> bool:
    if found.shape != kept.shape or found.dtype != kept.dtype:
        return False
    if kept.dtype.kind != "f":
        return np.array_equal(found, kept)  # ids and masks: the next one is another
    return np.allclose(found, kept, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE, equal_nan=True)
