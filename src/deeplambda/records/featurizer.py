"""From payloads to features: an application's transform with its learned state, and what may go wrong in it.

Whatever a user's code raises, returns or takes too long for ends in a `BadFeatures` that names the exception and the
line. `isolated` finds the rows to blame, so that one bad event harms no other. Legend: N rows.
"""

import ctypes
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from deeplambda.application import Application, learns
from deeplambda.errors import BadInput
from deeplambda.features import (
    BadFeatures,
    Features,
    Specification,
    checked,
    concatenated,
    declared,
    finite_rows,
    specification,
)
from deeplambda.records.isolation import bisect

ISOLATION_S = 60.0
"""How long the culprits of one batch are looked for, besides waiting for those that hang, before the batch fails."""

NOT_FINITE = "a feature is NaN or infinite"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Isolated:
    """rows_N: positions of the rows that passed. features: theirs. refused: by position, why."""

    rows_N: list[int]
    features: Features
    refused: dict[int, BadFeatures]


class Featurizer:
    """One version of an application's transform. Its results do not depend on how rows are batched.

    code_version: of the application's sources. state: what its `fit` learned, None where it has none. id: what tells
    two featurizers apart; equal ids give equal features. wanted: the tensors that the version was trained on.
    """

    def __init__(
        self,
        application: Application,
        *,
        code_version: str,
        state: Any = None,
        state_sha256: str | None = None,
        wanted: Specification | None = None,
    ) -> None:
        self.application = application
        self.code_version = code_version
        self.id = featurizer_id(code_version, state_sha256)
        self._arguments = (state,) if learns(application) else ()
        self._wanted = declared(application.features) or wanted

    def features(self, batch: pa.RecordBatch) -> Features:
        """Features of N rows, which may hold NaN; none when N is 0, for which transform is never called.

        batch: columns as `payload_schema` has them. Raises: BadFeatures.
        """
        if batch.num_rows == 0:
            return {}
        application = self.application
        given = bounded(
            lambda: application.transform(batch, *self._arguments), application.transform_limit_s, "the transform"
        )
        features = checked(given, batch.num_rows, self._wanted)
        if self._wanted is None:
            self._wanted = specification(features)
        return features

    def isolated(self, batch: pa.RecordBatch) -> Isolated:
        """As `features`, with the rows that make it fail, or give NaN or infinity, set apart.

        Raises: NotReady when the culprits cannot be found in time: nearly every row is one, or the transform hangs.
        """
        # One event that hangs costs a whole limit at every halving: that much is granted for two of them.
        halvings = batch.num_rows.bit_length()
        limit_s = ISOLATION_S + 2 * halvings * self.application.transform_limit_s
        found = isolate(self.features, batch, limit_s=limit_s)
        rows = np.array(found.rows_N, dtype=np.int64)
        finite_N = finite_rows(found.features, len(rows))
        if finite_N.all():
            return found
        refused = {int(row): BadFeatures(NOT_FINITE, "send finite values") for row in rows[~finite_N]}
        return Isolated(
            rows_N=rows[finite_N].tolist(),
            features={name: array[finite_N] for name, array in found.features.items()},
            refused=found.refused | refused,
        )


def featurizer_id(code_version: str, state_sha256: str | None) -> str:
    """Names a featurizer: the code's version and, where it learned something, the hash of that."""
    return f"{code_version}-{state_sha256[:12]}" if state_sha256 else code_version


def isolate(
    transform: Callable[[pa.RecordBatch], Features], batch: pa.RecordBatch, *, limit_s: float = ISOLATION_S
) -> Isolated:
    """The rows of a batch that a transform takes, and those that it refuses. Raises: NotReady past `limit_s`."""
    found = bisect(
        lambda rows: transform(batch.slice(rows.start, rows.stop - rows.start)), batch.num_rows, limit_s=limit_s
    )
    return Isolated(
        rows_N=[row for rows, _ in found.pieces for row in range(rows.start, rows.stop)],
        features=concatenated([features for _, features in found.pieces]),
        refused={row: BadFeatures(exc.message, exc.remedy) for row, exc in found.refused.items()},
    )


def bounded(call: Callable[[], T], limit_s: float, what: str) -> T:
    """The result of a user's code. Raises: BadFeatures for whatever it raises, or when it takes longer than `limit_s`.

    It runs in a thread of its own, which is told to end when its time is over; code that never comes back from C keeps
    its thread.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((True, call()))
        except Exception as exc:
            outcome.extend((False, exc))
        except _TooLong:
            pass

    thread = threading.Thread(target=run, name="application", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not outcome:
        _end(thread)
        raise BadFeatures(f"{what} took longer than {limit_s:g} s", "make it quicker, or raise `transform_limit_s`")
    succeeded, value = outcome
    if succeeded:
        return value  # type: ignore[no-any-return]
    if isinstance(value, BadFeatures):
        raise value
    raise BadFeatures(f"{what} raised {said(value)}", "fix the application, or refuse such events in its schema")


def said(exc: Exception) -> str:
    """An exception of a user's code in one line, with the file and line that it came from."""
    frames = traceback.extract_tb(exc.__traceback__)
    own = [frame for frame in frames if frame.name != "run" and "deeplambda/records/featurizer" not in frame.filename]
    where = f" ({own[-1].filename.rpartition('/')[2]}, line {own[-1].lineno})" if own else ""
    message = exc.message if isinstance(exc, BadInput) else str(exc).strip().partition("\n")[0][:500]
    return f"{type(exc).__name__}: {message}{where}"


class _TooLong(BaseException):
    """Raised within a thread whose time is over."""


def _end(thread: threading.Thread) -> None:
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_TooLong))
