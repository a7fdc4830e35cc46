"""Requests in flight share passes through the model: what waits when a pass begins goes into it, up to its best size.

Nothing waits for a batch to fill: where no pass runs, the first row begins one. A further pass of the same model begins
beside it only when it would be full, for two small ones cost more than one, or when the one before makes features for
`HANGS_AFTER_S`: one event on which a transform hangs holds up no others.

1. a request hands in its rows, decoded, or is refused at once because it would wait too long (`Passes.score`)
2. a thread takes rows of one champion from the requests that wait, a part of each large one in turn
3. it makes features of those that are events, all together; a row that the transform fails on ends its request alone
4. when it is its turn, the model runs; turns go round the applications in the order in which they ask; where memory is
   short all of the pass is to be sent again, and where the device fails the process begins anew
5. predictions are decoded together, and each request is given its rows
"""

import math
import os
import signal
import threading
import time
from collections import deque
from dataclasses import replace

from deeplambda.application import Event
from deeplambda.errors import BadInput, DeadlinePassed, DeviceFailed, InvalidEvent, Overloaded, TooManyRefused
from deeplambda.features import Features, chosen, concatenated
from deeplambda.records.admission import payloads
from deeplambda.records.answers import answers, outputs_of
from deeplambda.records.featurizer import Featurizer, said
from deeplambda.service.load_shedding import LESS_LOAD, LoadShedder
from speed_layer.model_service.fast_path import PASS_ROWS
from speed_layer.model_service.jobs import Job, Piece, Scored, part_of
from speed_layer.model_service.statistics import OnPass, Times
from speed_layer.model_service.turns import Turns

WAITING_PASSES = 8
"""How many passes of rows may wait before a request's own; of a large one, which gives way after each, one counts."""
FEW_PASSES = 2
"""In a flood, of requests that no pass has begun: beside a large one as many rows of small ones may wait."""
HANGS_AFTER_S = 0.25
"""For so long a pass may make features before another begins beside it: each may, now and then, on a busy machine."""
_LEAST_ROWS = 2
"""That a pass counts for: 16 clients may wait for a model that is best at one row at a time."""


class Passes:
    """One application's queue, and the threads that take passes from it.

    turns: shared by all applications. on_pass: called after each pass; the metrics count them.
    """

    def __init__(self, name: str, turns: Turns, on_pass: OnPass) -> None:
        self._turns, self._on_pass, self._name = turns, on_pass, name
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._making: list[float] = []  # since when running passes make features, where they do
        self._busy = threading.Event()  # something waits or runs, as far as is known
        self._ahead_rows = 0  # of what waits, as far as it comes before a new request's rows
        self._fresh_rows = 0  # of these, those of requests that no pass has begun
        self._best_rows = PASS_ROWS[-1]  # of the newest request's champion
        self._pass_s = 0.0
        self._shedder = LoadShedder(few=FEW_PASSES, most=WAITING_PASSES)
        self._at_once = turns.at_once
        for number in range(turns.at_once):
            threading.Thread(target=self._work, name=f"passes-{name}-{number}", daemon=True).start()
        threading.Thread(target=self._watch, name=f"passes-{name}-spare", daemon=True).start()

    def check_room(self) -> None:
        """Called before a request's rows are decoded, which it may be spared. Raises: Overloaded."""
        counted = max(self._best_rows, _LEAST_ROWS)
        if self._shedder.refuses(self._fresh_rows / counted) or self._ahead_rows >= WAITING_PASSES * counted:
            wait_s = self._ahead_rows / self._best_rows * self._pass_s
            raise Overloaded(f"{self._ahead_rows} rows wait for {self._name!r} already", LESS_LOAD, wait_s)

    def submit(self, job: Job) -> None:
        """Queue a request's rows; `job.scored` will have the result. Raises: Overloaded, DeadlinePassed."""
        best = job.champion.path.best_rows
        with self._changed:
            self.check_room()
            if self._jobs or self._running:  # what comes alone is tried, for passes may have become quicker meanwhile
                self._check_time(job, best)
            self._jobs.append(job)
            self._best_rows = best
            self._ahead_rows += min(job.count, best)
            self._fresh_rows += min(job.count, best)
            if self._may_begin():
                self._changed.notify()
            if not self._busy.is_set():
                self._busy.set()

    def _check_time(self, job: Job, best: int) -> None:
        left_s = job.until - time.monotonic()
        alone_s = math.ceil(job.count / best) * self._pass_s
        if alone_s > left_s:
            raise DeadlinePassed(f"the answer would take {alone_s:.3f} s, longer than it may", "ask for fewer rows")
        wait_s = (math.ceil((self._ahead_rows + job.count) / best) + 1) * self._pass_s
        if wait_s > left_s:
            raise Overloaded(f"the answer would take {wait_s:.3f} s, longer than it may", LESS_LOAD, wait_s)

    def _may_begin(self) -> bool:
        too_long = time.monotonic() - HANGS_AFTER_S
        running = self._running - sum(since < too_long for since in self._making)
        is_full = bool(self._jobs) and self._ahead_rows >= self._jobs[0].champion.path.best_rows
        return bool(self._jobs) and (running == 0 or (is_full and running < self._at_once))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._may_begin)
                pieces = self._begun()
            self._finish(pieces)
            del pieces  # nothing of them is kept while the thread waits

    def _watch(self) -> None:
        """See to what waits for a transform that hangs, of which nobody else is told."""
        while True:
            self._busy.wait()
            time.sleep(HANGS_AFTER_S)
            with self._changed:
                if not (self._jobs or self._running):
                    self._busy.clear()
                pieces = self._begun() if self._may_begin() else []
            self._finish(pieces)
            del pieces

    def _begun(self) -> list[Piece]:
        pieces = self._taken()
        self._running += bool(pieces)
        if self._may_begin():
            self._changed.notify()
        return pieces

    def _finish(self, pieces: list[Piece]) -> None:
        if not pieces:
            return
        begun = time.monotonic()
        try:
            self._run(pieces)
        except Exception as exc:
            _fail(pieces, exc)
            if isinstance(exc, DeviceFailed):
                _end_worker()
        except BaseException as exc:  # a user's code may call `sys.exit`, and the thread has to go on
            _fail(pieces, InvalidEvent(f"the application raised {said(exc)}"))
        finally:
            with self._changed:
                self._running -= 1
                self._pass_s += 0.1 * (time.monotonic() - begun - self._pass_s)

    def _taken(self) -> list[Piece]:
        """Rows for a pass, all for the champion of the request that came first."""
        pieces: list[Piece] = []
        champion = self._jobs[0].champion
        room = best = champion.path.best_rows
        while self._jobs and room and self._jobs[0].champion is champion:
            job = self._jobs.popleft()
            self._ahead_rows -= min(job.waiting, best)
            if job.waiting == job.count:
                self._fresh_rows -= min(job.count, best)
            if job.is_over:
                job.fail(job.too_late)
                continue
            pieces.append(job.take(room))
            room -= pieces[-1].count
            if job.waiting:
                self._jobs.append(job)
                self._ahead_rows += min(job.waiting, best)
        return pieces

    def _run(self, pieces: list[Piece]) -> None:
        try:
            self._pass(pieces)
        except TooManyRefused:  # it may be one request's rows that fail, and it has taken a minute to say so
            if len(pieces) == 1:
                raise
            for piece in (each for each in pieces if not each.job.is_over):
                try:
                    self._pass([piece])
                except TooManyRefused as exc:
                    piece.job.fail(exc)

    def _pass(self, pieces: list[Piece]) -> None:
        champion, begun = pieces[0].job.champion, time.monotonic()
        pieces = sorted(pieces, key=lambda piece: not piece.job.events)
        with self._changed:
            self._making.append(begun)
        try:
            rows, features, refused = _features(champion.featurizer, pieces)
        finally:
            with self._changed:
                self._making.remove(begun)
        made = time.monotonic()
        with self._turns:
            ran = time.monotonic()
            found = outputs_of(champion.path, features)
        scored = time.monotonic()
        refused |= {rows[row]: refusal for row, refusal in found.refused.items()}
        rows, outputs = [rows[row] for row in found.rows_N], found.outputs_N
        predictions = None
        if rows and any(piece.job.decodes for piece in pieces):
            answered = answers(champion.application.objective, outputs)
            refused |= {rows[row]: refusal for row, refusal in answered.refused.items()}
            if answered.refused:
                rows, outputs = [rows[row] for row in answered.rows_N], outputs[answered.rows_N]
            predictions = replace(answered, refused={}).all()
        times = Times(features_s=made - begun, model_s=scored - ran, answers_s=time.monotonic() - scored)
        self._on_pass(self._name, champion.card.version, sum(piece.count for piece in pieces), times)
        for piece in pieces:
            piece.job.times.append(times)
        _deliver(pieces, rows, Scored(outputs=outputs, predictions=predictions), refused, self._changed)


def _features(featurizer: Featurizer, pieces: list[Piece]) -> tuple[list[int], Features, dict[int, BadInput]]:
    """Positions and features of the rows that have some, and why others have none. pieces: those of events first."""
    events: list[Event] = [event for piece in pieces for event in piece.job.events[piece.rows]]
    made = [chosen(piece.job.features, piece.rows) for piece in pieces if not piece.job.events]
    rows: list[int] = []
    refused: dict[int, BadInput] = {}
    if events:
        batch, unfit = payloads(featurizer.application.event, events)
        kept = [n for n in range(len(events)) if n not in unfit]
        found = featurizer.isolated(batch)
        refused = unfit | {kept[n]: refusal for n, refusal in found.refused.items()}
        rows = [kept[n] for n in found.rows_N]
        if rows:
            made.insert(0, found.features)
    total = sum(piece.count for piece in pieces)
    return [*rows, *range(len(events), total)], concatenated(made), refused


def _end_worker() -> None:
    """What has come is answered, and gunicorn begins another worker: CUDA does no more work for a process that it has
    failed once."""
    os.kill(os.getpid(), signal.SIGTERM)


def _fail(pieces: list[Piece], exc: Exception) -> None:
    for piece in pieces:
        piece.job.fail(exc)


def _deliver(
    pieces: list[Piece], rows: list[int], scored: Scored, refused: dict[int, BadInput], lock: threading.Condition
) -> None:
    """Give each piece what is known of it. rows: the positions that `scored` is of, in order."""
    first = at = 0
    for piece in pieces:
        wrong = [row for row in range(first, first + piece.count) if row in refused] if refused else []
        got = piece.count - len(wrong)
        part = slice(at, at + got)
        if wrong:
            piece.refuse(wrong[0] - first, refused[wrong[0]])
        else:
            predictions = part_of(scored.predictions, part) if scored.predictions and piece.job.decodes else None
            with lock:  # two passes may have parts of one request
                piece.job.deliver(piece.first, Scored(outputs=scored.outputs[part], predictions=predictions))
        first, at = first + piece.count, at + got
