"""Aside: what would take the loop more than a few milliseconds is done in one thread, in turns round the applications.

One such thing is done at a time: parsed JSON takes up to 25 times its text, and quicker it would not be.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import Gauge

from deeplambda.adapters.model_service import BODY_LIMIT_BYTES
from deeplambda.errors import DeadlinePassed, Overloaded
from deeplambda.service.cooperative_worker import result_of
from deeplambda.service.load_shedding import LESS_LOAD

LARGE_BYTES = 64 * 1024
"""What takes the loop longer than a few milliseconds to parse, and so has a thread for it."""
WAITING_BYTES = 2 * BODY_LIMIT_BYTES
"""Of one application's, when one more is refused: some seconds of work."""

T = TypeVar("T")


class Aside:
    """The thread, and what waits for it. in_progress: requests that wait for it or are in it; replicas follow it."""

    def __init__(self, in_progress: Gauge) -> None:
        self._in_progress = in_progress
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[_Call]] = {}  # the next application's first
        threading.Thread(target=self._work, name="large", daemon=True).start()

    def result(
        self, application: str, call: Callable[[], T], size_bytes: int, until: float, *, scored: bool = False
    ) -> T:
        """What `call` gives, which works on `size_bytes`; small ones are made here and now.

        until: `time.monotonic()` by which it has to be there. scored: whether it is for a request that the model has
        worked on, which is not refused any more. Raises: Overloaded, DeadlinePassed, and what `call` raises.
        """
        if size_bytes < LARGE_BYTES:
            return call()
        made: Future[T] = Future()
        own = _Call(call, made, size_bytes)
        try:
            self._queue(application, own, limit_bytes=float("inf") if scored else WAITING_BYTES)
            with self._in_progress.track_inprogress():
                return result_of(made, None if until == float("inf") else max(0.0, until - time.monotonic()))
        except TimeoutError as exc:
            if made.cancel():
                own.call, own.size_bytes = None, 0
                raise Overloaded("the request's time was over before its turn came", LESS_LOAD) from exc
            raise DeadlinePassed("the answer would have come later than the request asks", "give it more time") from exc
        finally:
            del made, own  # else what is raised, whose traceback has this frame, would hold itself, and the body

    def _queue(self, application: str, own: "_Call", limit_bytes: float) -> None:
        with self._changed:
            waiting = self._waiting.setdefault(application, deque())
            waiting_bytes = sum(each.size_bytes for each in waiting)
            if waiting_bytes >= limit_bytes:
                raise Overloaded(f"{waiting_bytes} bytes wait for {application!r} already", LESS_LOAD)
            waiting.append(own)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                application = next(iter(self._waiting))
                waiting = self._waiting.pop(application)
                own = waiting.popleft()
                if waiting:
                    self._waiting[application] = waiting  # after the others
            _make(own)
            del own, waiting  # nothing of them is kept while the thread waits


@dataclass
class _Call:
    call: Callable[[], Any] | None
    made: Future[Any]
    size_bytes: int


def _make(own: _Call) -> None:
    try:
        if own.made.set_running_or_notify_cancel() and own.call is not None:
            own.made.set_result(own.call())
    except BaseException as exc:
        own.made.set_exception(exc)
    finally:
        del own
