"""Admission: from keyed records to features. Stream and recomputation take the same events, because both call `admit`.

Legend: N records that pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from deeplambda.application import Event, payload_batch
from deeplambda.errors import kept
from deeplambda.features import BadFeatures, Features
from deeplambda.records.decoding import Reason, RefusedEvent, check_key, decode_event
from deeplambda.records.featurizer import NOT_FINITE, Featurizer
from deeplambda.records.isolation import LIMIT_S

_NO_COLUMN = (pa.ArrowException, OverflowError, UnicodeEncodeError)


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """rows_N: positions of what passed, in the batch. features: by name, (N, …). refused: position and why."""

    rows_N: Sequence[int]
    events_N: Sequence[Event]
    features: Features
    refused: Sequence[tuple[int, RefusedEvent]]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """rows_N: positions of what passed, in the batch. payload: N rows, ready for a transform. refused: as above."""

    rows_N: Sequence[int]
    events_N: Sequence[Event]
    payload: pa.RecordBatch
    refused: Sequence[tuple[int, RefusedEvent]]


def admit(
    featurizer: Featurizer,
    records: Sequence[tuple[bytes | None, bytes | None]],
    *,
    limit_bytes: int,
    within_s: float = LIMIT_S,
) -> Admitted:
    """Check and transform a batch of (key, value) records; refuses what is wrong, row by row.

    Raises: TooManyRefused when those that the transform fails for cannot be told apart within `within_s`.
    """
    checked = check(featurizer.application.event, records, limit_bytes=limit_bytes)
    rows, events, refused = checked.rows_N, checked.events_N, list(checked.refused)
    found = featurizer.isolated(checked.payload, within_s=within_s)
    refused += [
        (rows[n], RefusedEvent(refusal.message, refusal.remedy, _reason(refusal)))
        for n, refusal in found.refused.items()
    ]
    return Admitted(
        rows_N=[rows[n] for n in found.rows_N],
        events_N=[events[n] for n in found.rows_N],
        features=found.features,
        refused=refused,
    )


def check(schema: type[Event], records: Sequence[tuple[bytes | None, bytes | None]], *, limit_bytes: int) -> Checked:
    """The checks alone, of a batch of (key, value) records, row by row."""
    rows: list[int] = []
    events: list[Event] = []
    refused: list[tuple[int, RefusedEvent]] = []
    for row, (key, value) in enumerate(records):
        try:
            event = decode_event(schema, value, limit_bytes=limit_bytes)
            check_key(event, key)
        except RefusedEvent as refusal:
            refused.append((row, kept(refusal)))
        else:
            rows.append(row)
            events.append(event)
    batch, unfit = payloads(schema, events)
    if unfit:
        refused += [(rows[n], refusal) for n, refusal in unfit.items()]
        rows = [row for n, row in enumerate(rows) if n not in unfit]
        events = [event for n, event in enumerate(events) if n not in unfit]
    return Checked(rows_N=rows, events_N=events, payload=batch, refused=refused)


def payloads(schema: type[Event], events: Sequence[Event]) -> tuple[pa.RecordBatch, dict[int, RefusedEvent]]:
    """The payloads of checked events, ready for a transform, but for those with a value that its column cannot hold,
    such as an integer beyond 64 bits: by position, why they are refused."""
    try:
        return payload_batch(schema, events), {}
    except _NO_COLUMN:
        pass
    refused = {}
    for n, event in enumerate(events):
        try:
            payload_batch(schema, [event])
        except _NO_COLUMN as exc:
            refused[n] = RefusedEvent(
                f"a value does not fit its column: {exc}",
                "send a value that the schema's type can hold",
                Reason.BAD_VALUE,
            )
    return payload_batch(schema, [event for n, event in enumerate(events) if n not in refused]), refused


def _reason(refusal: BadFeatures) -> Reason:
    return Reason.BAD_VALUE if refusal.message == NOT_FINITE else Reason.TRANSFORM_FAILED
