"""Champions: follows the compacted topic `deeplambda.champions`, loads each new champion, swaps models under load.

One thread for each application, so that a slow load of one holds up no other:
1. read the topic from its beginning to its end; the newest record of the application is its champion
2. fetch the card and the weights by hash, find the fast path, warm it up
3. put the new model in place by one assignment; a request in progress keeps the model that it began with
If step 2 fails, the previous model stays in place, the metadata gives the reason, and it is tried again,
after waits that double: up to 5 s where a store is away, up to a minute where memory, disk or an object is missing.
What the application's own code raises, and a model that fails its checks, is not.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from heapq import nlargest

from kafka.errors import KafkaError
from pydantic import ValidationError
from pydantic_core import to_json

from deeplambda.adapters.kafka import consumer, kafka_errors
from deeplambda.adapters.machine import chosen_device, lacks_memory
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.config import Settings
from deeplambda.errors import CorruptObject, DeepLambdaError, NotReady, UnfitModel
from deeplambda.features import chosen, zero_features
from deeplambda.objective import SCORES_LIMIT, Classification
from deeplambda.records import topics
from deeplambda.records.featurizer import Featurizer
from deeplambda.records.lifecycle import ModelPromoted
from deeplambda.state.card import Card, fetch_card
from deeplambda.state.versions import fetch_kept_rows, fetch_model, load_code
from speed_layer.model_service.fast_path import FastPath, fast_path

log = logging.getLogger(__name__)

POLL_S = 0.5
HEAR_EVERY_S = 10.0  # and more often where champions are stale sooner
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 5.0
_REPAIR_S = 60.0
PATIENCE_S = 900.0
"""Longer than the ten minutes after which Kubernetes calls a rollout failed: that is seen before it goes on."""


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A model version with everything that a request needs; never changed, only replaced."""

    card: Card
    featurizer: Featurizer
    path: FastPath
    output_shape: tuple[int, ...]

    @property
    def application(self) -> Application:
        """The version's own code, whatever is deployed."""
        return self.featurizer.application

    @cached_property
    def name_bytes(self) -> int:
        """What the longest name of a class takes as JSON; 0 where the objective has no classes."""
        return max(self._names_bytes, default=0)

    @cached_property
    def scores_bytes(self) -> int:
        """What the names of one prediction's scores take as JSON at most."""
        return sum(nlargest(SCORES_LIMIT, self._names_bytes))

    @cached_property
    def _names_bytes(self) -> list[int]:
        return [len(to_json(name)) for name in getattr(self.application.objective, "classes", ())]


def load_champion(store: ObjectStore, settings: Settings, promotion: ModelPromoted) -> Champion:
    """The version's code, learned state and weights, checked on the rows that were kept with it.

    Raises: CorruptObject, UnfitModel, BadInput, NotReady, UnknownApplication, ConfigurationError.
    """
    name = f"{promotion.application}/{promotion.version}"
    card = fetch_card(store, promotion.application, promotion.version)
    for what, promoted, found in (
        ("weights", promotion.weights_sha256, card.weights_sha256),
        ("code", promotion.code_sha256, card.code_sha256),
    ):
        if promoted is not None and promoted != found:
            raise CorruptObject(
                f"champion {name!r} was promoted with {what} {promoted[:12]}…, its card says {(found or 'none')[:12]}…",
                "restore the version's card, or promote another version",
            )
    featurizer = load_code(store, settings, card).featurizer
    application, kept = featurizer.application, fetch_kept_rows(store, card)
    model = fetch_model(store, application, card)
    trial = kept.features if kept else zero_features(card.features)
    if kept:
        kept.check_features(featurizer.features, name)
    objective = application.objective
    decides = type(objective) is Classification and objective.threshold is None
    path = fast_path(model, trial, name=name, decides=decides, device=chosen_device(settings.device))
    if kept:
        kept.check_outputs(path.exactly, name)
    return Champion(card=card, featurizer=featurizer, path=path, output_shape=path(chosen(trial, slice(1))).shape[1:])


def may_pass(exc: BaseException) -> bool:
    """Whether a version could be loaded later that was not now: memory or disk was short."""
    return isinstance(exc, OSError) or lacks_memory(exc)


class ChampionWatch:
    """One application's champion. `current` and `error` may be read from any thread.

    on_swap, on_failure: callbacks that the watching thread calls with the application's name: the one with the version
    that it has put in place as well, or 0, the other after each failed load. `start_service` passes those that count.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        on_swap: Callable[[str, int], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self.name = name
        self.current: Champion | None = None
        self.error: str | None = "Kafka has not answered yet"
        self._began_s = time.monotonic()
        self._settings, self._store = settings, ObjectStore(settings)
        self._on_swap, self._on_failure = on_swap, on_failure
        self._pending: ModelPromoted | None = None
        self._promoted = self._caught_up = False
        self._retry_s, self._retry_at = FIRST_RETRY_S, 0.0
        self._heard_at = time.monotonic()
        self._busy_at: float | None = None
        self._newest: ModelPromoted | None = None
        self._is_wanted = True
        self._orders: queue.SimpleQueue[tuple[bool, Future[None]]] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"champion-{name}", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether the champion serves, or the whole topic has been read and names none."""
        return self.current is not None or not self._is_wanted or (self._caught_up and not self._promoted)

    @property
    def was_tried(self) -> bool:
        """Whether the champion serves, or there is none, or it could not be loaded for `PATIENCE_S`."""
        return self.is_ready or time.monotonic() - self._began_s > PATIENCE_S

    @property
    def silent_s(self) -> float:
        """For how long Kafka has not answered what the champions topic holds, of the time that it was listened to."""
        return (self._busy_at or time.monotonic()) - self._heard_at

    def start(self) -> None:
        """Begin to follow the topic."""
        self._thread.start()

    def load(self) -> "Future[None]":
        """Take up the newest champion, now; done once it serves, or failed with the reason why it does not."""
        return self._order(wanted=True)

    def unload(self) -> "Future[None]":
        """Serve none until `load`; requests in progress are still answered."""
        return self._order(wanted=False)

    def _order(self, *, wanted: bool) -> "Future[None]":
        done: Future[None] = Future()
        self._orders.put((wanted, done))
        return done

    def stop(self) -> None:
        """Stop following the topic; waits up to 2 s for the thread, which a load in progress may outlive."""
        self._stopped.set()
        self._thread.join(timeout=2)

    def _watch(self) -> None:
        delay_s, hear_every_s = FIRST_RETRY_S, min(HEAR_EVERY_S, self._settings.stale_champions_s / 2 or HEAR_EVERY_S)
        while not self._stopped.is_set():
            try:
                with closing(consumer(self._settings, topics.CHAMPIONS, only_reads=True)) as reader:
                    delay_s, self.error = FIRST_RETRY_S, None
                    with kafka_errors(self._settings):
                        ends = reader.end_offsets(reader.assignment())
                    self._heard_at, at_end = time.monotonic(), False
                    while not self._stopped.is_set():
                        with kafka_errors(self._settings):
                            batches = reader.poll(timeout_ms=int(POLL_S * 1000))
                        for record in (record for batch in batches.values() for record in batch):
                            self._read_promotion(record.key, record.value)
                        if not at_end:
                            with kafka_errors(self._settings):
                                at_end = reader.has_reached(ends)
                            self._caught_up |= at_end
                        if self.silent_s > hear_every_s:  # where no broker is, a poll finds nothing as well
                            with kafka_errors(self._settings):  # so seldom it may wait for a fetch
                                reader.end_offsets(reader.assignment())
                            self._heard_at = time.monotonic()
                        self._busy_at = time.monotonic()
                        if at_end:  # before, the newest promotion may be one of long ago
                            self._load_pending()
                            self._follow_orders()
                        self._heard_at += time.monotonic() - self._busy_at
                        self._busy_at = None
            except Exception as exc:  # whatever it is: without this thread the application would never swap again
                if not isinstance(exc, (DeepLambdaError, KafkaError)):
                    log.exception("%s: following champions failed", self.name)
                self.error = f"cannot follow champions: {exc}"
                log.warning("%s: %s; next try in %.1f s", self.name, self.error, delay_s)
                self._stopped.wait(delay_s)
                delay_s = min(2 * delay_s, LAST_RETRY_S)

    def _read_promotion(self, key: bytes | None, value: bytes | None) -> None:
        if key != self.name.encode() or value is None:
            return
        try:
            promotion = ModelPromoted.model_validate_json(value)
        except ValidationError as exc:
            self._report_failure(f"a record of {topics.CHAMPIONS!r} is not a promotion: {exc.errors()[0]['msg']}")
            return
        self._newest = self._pending = promotion
        self._retry_s, self._retry_at = FIRST_RETRY_S, 0.0
        self._promoted = True

    def _load_pending(self) -> None:
        """Load the champion of the newest promotion read, unless it is in place already."""
        promotion = self._pending
        if promotion is None or not self._is_wanted or time.monotonic() < self._retry_at:
            return
        current = self.current
        if current and (current.card.version, current.card.weights_sha256) == (
            promotion.version,
            promotion.weights_sha256,
        ):
            self._pending = self.error = None
            return
        begun = time.monotonic()
        try:
            champion = load_champion(self._store, self._settings, promotion)
        except DeepLambdaError as exc:
            self._report_failure(f"champion '{promotion.application}/{promotion.version}' not loaded: {exc}")
            self._retry(LAST_RETRY_S if exc.retryable else None if isinstance(exc, UnfitModel) else _REPAIR_S)
        except Exception as exc:  # the model's own code may raise anything; the current model has to stay in place
            log.exception("champion '%s/%d' not loaded", promotion.application, promotion.version)
            passes = may_pass(exc)
            remedy = "it is tried again" if passes else "fix the application, or promote another version"
            self._report_failure(
                f"champion '{promotion.application}/{promotion.version}' not loaded: "
                f"{type(exc).__name__}: {exc}; {remedy}"
            )
            self._retry(_REPAIR_S if passes else None)
        else:
            self.current = champion
            self._pending = self.error = None
            took_s = time.monotonic() - begun
            log.info("%s/%d serves (%s, loaded in %.2f s)", self.name, promotion.version, champion.path.variant, took_s)
            self._on_swap(self.name, promotion.version)

    def _follow_orders(self) -> None:
        """Load or unload as operators have asked meanwhile."""
        while not self._orders.empty():
            wanted, done = self._orders.get()
            if not done.set_running_or_notify_cancel():  # whoever gave it was told that it is not done
                continue
            self._is_wanted = wanted
            if not self._is_wanted:
                self.current, self.error = None, "an operator has unloaded it"
                self._on_swap(self.name, 0)
                done.set_result(None)
                continue
            self._pending, self._retry_at = self._newest, 0.0
            self._load_pending()
            if self.current is None or self.error:
                done.set_exception(NotReady(self.error or f"{self.name!r} has no champion", "promote a version"))
            else:
                done.set_result(None)

    def _report_failure(self, reason: str) -> None:
        log.error(
            "%s; %s",
            reason,
            f"version {self.current.card.version} stays in place" if self.current else "no champion is in place",
        )
        self.error = reason
        self._on_failure(self.name)

    def _retry(self, longest_wait_s: float | None) -> None:
        """Try again, after waits that double up to the longest; None: give up."""
        if longest_wait_s is None:
            self._pending = None
            return
        self._retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, longest_wait_s)
