"""From payloads to features: an application's transform with its learned state, and what may go wrong in it.

Whatever a user's code raises, returns or takes too long for ends in a `BadFeatures` that names the exception and the
line. `isolated` finds the rows to blame, so that one bad event harms no other. Legend: N rows.
"""

import ctypes
import queue
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
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
    two featurizers apart; equal ids give equal features. wanted: the tensors that the version was trained on. limit_s:
    what one call of the transform may take.
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
        self.application = application  # of one version of the code there is one object, whoever uses it
        self.limit_s = application.transform_limit_s
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
        return self._within(self.limit_s, batch)

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
        limit_s, total = self.limit_s, batch.num_rows

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

    It runs beside the calling thread, in one that is told to end when the time is over; code that never comes back from
    C keeps it.
    """
    helper = getattr(_own, "helper", None)
    if helper is None or not helper.is_alive:
        helper = _own.helper = _Helper()
    try:
        succeeded, value = helper.outcome(call, limit_s)
    except queue.Empty:
        del _own.helper
        helper.end()
        raise BadFeatures(
            f"{what} took longer than {limit_s:g} s", "make it quicker, or raise `transform_limit_s`"
        ) from None
    if succeeded:
        return value  # type: ignore[no-any-return]
    if isinstance(value, BadFeatures):
        raise value
    raise BadFeatures(f"{what} raised {said(value)}", "fix the application, or refuse such events in its schema")


_own = threading.local()


class _Helper:
    """A thread that makes one call after another: a new one for each would cost more than most transforms, for it
    begins with no memory of its own. Each calling thread has one, which ends with it."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=_make_calls, args=(self._calls, self._outcomes), name="application", daemon=True
        )
        self._thread.start()

    def __del__(self) -> None:
        self._calls.put(None)

    @property
    def is_alive(self) -> bool:
        """False in a process that was forked since, as Spark's workers are."""
        return self._thread.is_alive()

    def outcome(self, call: Callable[[], Any], limit_s: float) -> tuple[bool, Any]:
        """Whether it succeeded, and the result or exception. Raises: queue.Empty when it took too long."""
        self._calls.put(call)
        return self._outcomes.get(timeout=limit_s)

    def end(self) -> None:
        """Have it end in the midst of a call."""
        if self._thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(_TooLong))


def _make_calls(
    calls: "queue.SimpleQueue[Callable[[], Any] | None]", outcomes: "queue.SimpleQueue[tuple[bool, Any]]"
) -> None:
    with suppress(_TooLong):
        while (call := calls.get()) is not None:
            try:
                outcome = True, call()
            except _TooLong:
                raise
            except BaseException as exc:  # `sys.exit` as well: a thread would end by it in silence
                outcome = False, exc
            del call  # while it waits, it keeps nothing of the last one
            outcomes.put(outcome)
            del outcome


def said(exc: BaseException) -> str:
    """An exception of a user's code in one line, with the file and line of that code that it came through last."""
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if frame.filename not in _OWN_FILES]
    written = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    where = f" ({Path(written[-1].filename).name}, line {written[-1].lineno})" if written else ""
    message = exc.message if isinstance(exc, BadInput) else str(exc).strip().partition("\n")[0][:500]
    return f"{type(exc).__name__}: {message}{where}"


class _TooLong(BaseException):
    """Raised within a thread whose time is over."""
