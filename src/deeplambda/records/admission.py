"""Admission: from keyed records to features. Stream and recomputation take the same events, because both call `admit`.

Legend: N records that pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeplambda.application import Application, Event, payload_batch
from deeplambda.records.decoding import Reason, RefusedEvent, check_key, decode_event


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """rows_N: positions in the batch of the records that pass. features: float32 (N, …). refused: position, error."""

    rows_N: Sequence[int]
    events_N: Sequence[Event]
    features: NDArray[np.float32]
    refused: Sequence[tuple[int, RefusedEvent]]


def admit(
    application: Application, records: Sequence[tuple[bytes | None, bytes | None]], *, limit_bytes: int
) -> Admitted:
    """Check and transform a batch of (key, value) records; never raises for what is in them."""
    rows: list[int] = []
    events: list[Event] = []
    refused: list[tuple[int, RefusedEvent]] = []
    for row, (key, value) in enumerate(records):
        try:
            event = decode_event(application.event, value, limit_bytes=limit_bytes)
            check_key(event, key)
        except RefusedEvent as refusal:
            refused.append((row, refusal))
        else:
            rows.append(row)
            events.append(event)
    features = application.transform(payload_batch(application.event, events))
    finite_N = np.isfinite(features.reshape(len(events), -1)).all(axis=1) if events else np.ones(0, dtype=bool)
    if not finite_N.all():
        refused += [(rows[n], _not_finite()) for n in np.flatnonzero(~finite_N)]
        kept = np.flatnonzero(finite_N)
        rows, events, features = [rows[n] for n in kept], [events[n] for n in kept], features[kept]
    return Admitted(rows_N=rows, events_N=events, features=features, refused=refused)


def _not_finite() -> RefusedEvent:
    return RefusedEvent("a feature is NaN or infinite", "send finite values", Reason.BAD_VALUE)
