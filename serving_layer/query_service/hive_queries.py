"""Statements that Hive answers: kept in `queries`, run one after the other by a few threads, cancelled on request."""

import logging
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from pyhive.hive import Cursor
from TCLIService.ttypes import TOperationState
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from deeplambda.adapters import hive
from deeplambda.config import Settings
from deeplambda.errors import BadInput, DeepLambdaError, NotReady
from serving_layer.query_service.messages import Answer, Column, QueryProgress, Status
from serving_layer.query_service.queries_table import Found, QueriesTable
from serving_layer.query_service.rows import fetched, take
from serving_layer.sql.guard import Checked

TIME_LIMIT_S = 100
"""Below the gateway's QUERY_TIMEOUT_S, so that it is this service that ends a query, and can say why."""
THREADS = 3
QUEUE_LIMIT = 50

_LOST = "its answer could not be kept; send it again"
_POLL_S = (0.05, 0.5)
_UNFINISHED = (TOperationState.INITIALIZED_STATE, TOperationState.PENDING_STATE, TOperationState.RUNNING_STATE)

_log = logging.getLogger(__name__)


@dataclass
class _Job:
    id: str
    checked: Checked
    submitted: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    state: str = "QUEUED"


class HiveQueries:
    """Runs queued statements on THREADS threads, from when it is made until `stop`."""

    def __init__(self, settings: Settings, table: QueriesTable) -> None:
        self._settings, self._table = settings, table
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="hive-query")
        self._swept = False

    def submit(self, sql: str, checked: Checked) -> str:
        """Queue a statement; returns the query's id. sql: as the analyst wrote it. Raises: NotReady."""
        self.sweep()
        job = _Job(str(uuid.uuid4()), checked)
        with self._lock:
            if len(self._jobs) >= QUEUE_LIMIT:
                raise NotReady(f"{QUEUE_LIMIT} queries wait or run already", "try again in a few seconds")
            self._jobs[job.id] = job
        try:
            self._table.add(job.id, sql)
            self._threads.submit(self._run, job)
        except Exception:  # whatever it is, it would keep its place in the queue
            self._forget(job)
            raise
        return job.id

    def find(self, query_id: str) -> Found | None:
        """A query, with its progress while it runs; None when there is none of that id. Raises: NotReady."""
        self.sweep()
        found = self._table.find(query_id)
        if found is None or found.query.status not in ("queued", "running"):
            return found
        job = self._jobs.get(query_id)
        if job is None:  # it ended between the two looks, or MySQL was away for longer than its end was tried
            self._table.end(query_id, "failed", error=_LOST)
            return self._table.find(query_id)
        elapsed_ms = (time.monotonic() - job.submitted) * 1e3
        progress = QueryProgress(state=job.state, elapsed_ms=elapsed_ms)
        return Found(found.query.model_copy(update={"progress": progress}), None)

    def cancel(self, query_id: str) -> None:
        """End a query that is queued or running; one that has ended stays as it is. Raises: NotReady."""
        if job := self._jobs.get(query_id):
            job.cancelled.set()
        self._table.end(query_id, "cancelled")

    def counts(self) -> tuple[int, int]:
        """Queries that wait, and that run."""
        with self._lock:
            states = [job.state for job in self._jobs.values()]
        return states.count("QUEUED"), len(states) - states.count("QUEUED")

    def sweep(self) -> None:
        """Mark as failed, once, the queries that an earlier process left unfinished. Raises: NotReady.

        Requests call it, not the constructor: MySQL may be away when the service starts.
        """
        with self._lock:
            if not self._swept:
                if failed := self._table.fail_unfinished():
                    _log.warning("%d queries had not ended with the service", failed)
                self._swept = True

    def stop(self) -> None:
        """Cancel everything and wait for the threads. gunicorn's hook `worker_exit` calls it."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.cancelled.set()
        self._threads.shutdown(cancel_futures=True)

    def _forget(self, job: _Job) -> None:
        with self._lock:
            self._jobs.pop(job.id, None)

    def _run(self, job: _Job) -> None:
        try:
            if self._table.begin(job.id):
                job.state = "RUNNING"
                self._end(job, "done", result=self._answer(job))
        except _Cancelled:
            self._end(job, "cancelled")
        except DeepLambdaError as exc:
            self._end(job, "failed", error=str(exc))
        except Exception as exc:  # the pool would swallow it
            _log.exception("query %s failed", job.id)
            self._end(job, "failed", error=f"the query service failed on it: {type(exc).__name__}")
        finally:
            self._forget(job)

    @retry(
        retry=retry_if_exception_type(NotReady),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        stop=stop_after_delay(60),
        reraise=True,
    )
    def _end(self, job: _Job, status: Status, result: Answer | None = None, error: str | None = None) -> None:
        self._table.end(job.id, status, result, error)

    def _answer(self, job: _Job) -> Answer:
        started = time.perf_counter()
        with hive.hive_errors(), closing(hive.connect(self._settings)) as connection, connection.cursor() as cursor:
            cursor.execute(job.checked.sql, async_=True)
            self._wait(job, cursor)
            columns = [
                Column(name=name, type=kind.removesuffix("_TYPE").lower())
                for name, kind, *_ in cursor.description or ()
            ]
            rows, truncated = take(fetched(cursor), job.checked.row_cap)
        return Answer(
            columns=columns,
            rows=rows,
            row_count=len(rows),
            truncated=truncated,
            elapsed_ms=(time.perf_counter() - started) * 1e3,
            store="hive",
        )

    def _wait(self, job: _Job, cursor: Cursor) -> None:
        deadline, pause_s = time.monotonic() + TIME_LIMIT_S, _POLL_S[0]
        while (status := cursor.poll(get_progress_update=False)).operationState in _UNFINISHED:
            job.state = TOperationState._VALUES_TO_NAMES[status.operationState].removesuffix("_STATE")
            if job.cancelled.wait(pause_s):
                cursor.cancel()
                raise _Cancelled
            if time.monotonic() > deadline:
                cursor.cancel()
                raise BadInput(f"the statement ran for longer than {TIME_LIMIT_S} s and was ended", "narrow it down")
            pause_s = min(pause_s * 1.5, _POLL_S[1])
        if status.operationState != TOperationState.FINISHED_STATE:
            raise hive.refusal(status.errorMessage)


class _Cancelled(Exception):
    """The query was cancelled, by its analyst or by `stop`."""
