"""From payloads to features: an application's transform with its learned state, and what may go wrong in it.

Whatever a user's code raises, returns or takes too long for ends in a `BadFeatures` that names the exception and the
line. `isolated` finds the rows to blame, so that one bad event harms no other. Legend: N rows.
"""

import ctypes
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
from deeplambda.records.isolation import LIMIT_S, halved

SHORTEST_LIMIT_S = 1.0
"""A part of a batch has that part of the batch's time, and at least this much: so culprits that hang are soon found."""

NOT_FINITE = "a feature is NaN or infinite"

_OWN_FILES = {__file__, str(Path(__file__).with_name("answers.py"))}

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
        return self._within(self.application.transform_limit_s, batch)

    def _within(self, limit_s: float, batch: pa.RecordBatch) -> Features:
        given = bounded(lambda: self.application.transform(batch, *self._arguments), limit_s, "the transform")
        features = checked(given, batch.num_rows, self._wanted)
        if self._wanted is None:
            self._wanted = specification(features)
        return features

    def isolated(self, batch: pa.RecordBatch, *, within_s: float = LIMIT_S) -> Isolated:
        """As `features`, with the rows that make it fail, or give NaN or infinity, set apart.

        Raises: TooManyRefused when the culprits are not found within `within_s`: the transform hangs on many of them.
        """
        limit_s, total = self.application.transform_limit_s, batch.num_rows

        def attempt(piece: slice) -> Features:
            count = piece.stop - piece.start
            shorter_s = max(limit_s * count / total, SHORTEST_LIMIT_S)
            return self._within(min(limit_s, shorter_s), batch.slice(piece.start, count))

        found = halved(attempt, total, BadFeatures, within_s=within_s)
        refused = {row: BadFeatures(exc.message, exc.remedy) for row, exc in found.refused.items()}
        features = concatenated([piece for _, piece in found.pieces])
        rows = np.array(found.rows, dtype=np.int64)
        finite_N = finite_rows(features, len(rows))
        if finite_N.all():
            return Isolated(rows_N=found.rows, features=features, refused=refused)
        refused |= {int(row): BadFeatures(NOT_FINITE, "send finite values") for row in rows[~finite_N]}
        return Isolated(
            rows_N=rows[finite_N].tolist(),
            features={name: array[finite_N] for name, array in features.items()},
            refused=refused,
        )


def featurizer_id(code_version: str, state_sha256: str | None) -> str:
    """Names a featurizer: the code's version and, where it learned something, the hash of that."""
    return f"{code_version}-{state_sha256[:12]}" if state_sha256 else code_version


def bounded(call: Callable[[], T], limit_s: float, what: str) -> T:
    """The result of a user's code. Raises: BadFeatures for whatever it raises, or when it takes longer than `limit_s`.

    It runs in a thread of its own, which is told to end when its time is over; code that never comes back from C keeps
    its thread.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((True, call()))
        except _TooLong:
            pass
        except BaseException as exc:  # `sys.exit` as well: a thread would end by it in silence
            outcome.extend((False, exc))

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


def said(exc: BaseException) -> str:
    """An exception of a user's code in one line, with the file and line of that code that it came through last."""
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if frame.filename not in _OWN_FILES]
    written = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    where = f" ({Path(written[-1].filename).name}, line {written[-1].lineno})" if written else ""
    message = exc.message if isinstance(exc, BadInput) else str(exc).strip().partition("\n")[0][:500]
    return f"{type(exc).__name__}: {message}{where}"


class _TooLong(BaseException):
    """Raised within a thread whose time is over."""


def _end(thread: threading.Thread) -> None:
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_TooLong))
