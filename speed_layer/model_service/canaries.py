"""Canaries: candidates that answer a share of the events in the champion's place.

One thread follows the compacted topic `deeplambda.experiments`, for all applications: the newest record of each says
whether a canary runs. A candidate is loaded and checked as a champion is. It has passes and a turn of its own, so
however slow it is, no request for the champion waits for it; what it has no answer to in time, the champion answers.
Where the champion has an answer that is a failure. Kafka is told of it, so that the experiment ends, by whoever has
asked both: over REST this service, which asks the candidate no more after `FAILURES` in a row, else the stream.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from kafka.errors import KafkaError
from pydantic import Field, TypeAdapter, ValidationError

from deeplambda.adapters.kafka import Publisher, consumer, kafka_errors
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import DeepLambdaError, NotReady
from deeplambda.records import topics
from deeplambda.records.experiments import Canary
from deeplambda.records.lifecycle import ChallengerFailed, ExperimentEnded, ExperimentStarted, ModelPromoted
from deeplambda.service.loops import in_one_line
from speed_layer.model_service.champions import LAST_RETRY_S, POLL_S, Champion, load_champion, may_pass
from speed_layer.model_service.passes import Passes
from speed_layer.model_service.statistics import OnPass
from speed_layer.model_service.turns import Turns

FAILURES = 3
ANSWERS_WITHIN_S = 1.0
"""What it does not answer over REST by then, the champion does."""
_FAILURES_KEPT = 1_000
_PATIENCE_S = 120.0
"""For so long a lack of memory or disk is not taken for the candidate's fault."""

_RECORD: TypeAdapter[ExperimentStarted | ExperimentEnded] = TypeAdapter(
    Annotated[ExperimentStarted | ExperimentEnded, Field(discriminator="type")]
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunningCanary:
    """A canary whose candidate is loaded. on_failure: told of each request over REST that it had no answer to: an event
    of it, and the reason."""

    known: Canary
    candidate: Champion
    passes: Passes
    on_failure: Callable[[str, str], None]
    _failed_in_a_row: set[str] = field(default_factory=set)

    @property
    def is_asked(self) -> bool:
        """Whether it has not failed again and again."""
        return len(self._failed_in_a_row) < FAILURES

    def takes(self, event_id: str) -> bool:
        """Whether it is to answer the event."""
        return self.is_asked and self.known.takes(event_id)

    def answered(self) -> None:
        """Note that it had an answer."""
        self._failed_in_a_row.clear()

    def failed(self, event_id: str, exc: Exception) -> None:
        """Count a request that it had no answer to, and the champion had; an event that is sent again counts once."""
        self._failed_in_a_row.add(event_id)
        self.on_failure(event_id, in_one_line(exc))


class CanaryWatch:
    """Follows the experiments. `running` may be read from any thread: by application, the canary that runs."""

    def __init__(self, settings: Settings, on_pass: OnPass) -> None:
        self.running: dict[str, RunningCanary] = {}
        self._settings, self._on_pass, self._store = settings, on_pass, ObjectStore(settings)
        self._wanted: dict[str, tuple[ExperimentStarted, float]] = {}  # with the end of the patience
        self._passes: dict[str, Passes] = {}  # by application, for one canary after the other
        self._failures: deque[ChallengerFailed] = deque(maxlen=_FAILURES_KEPT)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="canaries", daemon=True)

    def start(self) -> None:
        """Begin to follow the topic."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following it; waits up to 2 s for the thread, which a load in progress may outlive."""
        self._stopped.set()
        self._thread.join(timeout=2)

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                following = consumer(self._settings, topics.EXPERIMENTS, only_reads=True)
                with closing(following) as reader, Publisher(self._settings) as out:
                    with kafka_errors(self._settings):
                        ends, at_end = reader.end_offsets(reader.assignment()), False
                    while not self._stopped.is_set():
                        with kafka_errors(self._settings):
                            polled = reader.poll(timeout_ms=int(POLL_S * 1000))
                        for record in (record for batch in polled.values() for record in batch):
                            self._read(record.value)
                        if not at_end:
                            with kafka_errors(self._settings):
                                at_end = reader.has_reached(ends)
                        if at_end:  # before, the newest record may be one of long ago
                            self._load_wanted()
                        while self._failures:
                            out.send(topics.LIFECYCLE, self._failures[0].application, self._failures[0])
                            out.flush()
                            self._failures.popleft()
            except (DeepLambdaError, KafkaError) as exc:
                _log.warning("cannot follow experiments: %s", exc)
            except Exception:  # whatever it is: no experiment would ever end without this thread
                _log.exception("following experiments failed")
            self._stopped.wait(LAST_RETRY_S)

    def _read(self, value: bytes | None) -> None:
        try:
            record = _RECORD.validate_json(value or b"")
        except ValidationError:
            return
        if record.application in self._settings.applications:
            self._wanted.pop(record.application, None)
            before = self.running.pop(record.application, None)
            if before is not None and not before.is_asked:
                self._passes.pop(record.application)  # its candidate may never give its thread back
            if isinstance(record, ExperimentStarted) and record.kind == "canary":
                self._wanted[record.application] = record, time.monotonic() + _PATIENCE_S

    def _load_wanted(self) -> None:
        for name, (started, patient_until_s) in list(self._wanted.items()):
            version = ModelPromoted.model_validate(
                started.model_dump(exclude={"type"}) | {"previous": started.champion}
            )
            try:
                candidate = load_champion(self._store, self._settings, version)
            except BaseException as exc:  # the candidate's own code may raise anything
                if isinstance(exc, NotReady) or (may_pass(exc) and time.monotonic() < patient_until_s):
                    _log.warning("canary %s/%d not loaded yet: %s: %s", name, started.version, type(exc).__name__, exc)
                    continue
                _log.exception("canary %s/%d not loaded", name, started.version)
                self._not_loaded(started, exc)
            else:
                if name not in self._passes:
                    self._passes[name] = Passes(name, Turns(1), self._on_pass)
                self.running[name] = RunningCanary(
                    known=Canary(experiment=started.number, version=started.version, share=started.share),
                    candidate=candidate,
                    passes=self._passes[name],
                    on_failure=partial(self._failed, started),
                )
                _log.info("%s/%d answers %.3g of the events", name, started.version, started.share)
            del self._wanted[name]

    def _not_loaded(self, started: ExperimentStarted, exc: BaseException) -> None:
        for _ in range(FAILURES):
            self._failed(started, None, f"it could not be loaded: {type(exc).__name__}: {exc}")

    def _failed(self, started: ExperimentStarted, event_id: str | None, reason: str) -> None:
        _log.warning("canary %s/%d had no answer: %s", started.application, started.version, reason)
        self._failures.append(
            ChallengerFailed(
                application=started.application,
                number=started.number,
                version=started.version,
                event_id=event_id,
                part="model",
                reason=reason[:500],
            )
        )
