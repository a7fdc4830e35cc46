"""One generation: an application's new labels → their quality → a trained version → the gate → promoted or rejected.

1. Take the application's lock. Take up the generation that a process left which was killed, or open the next one.
2. `collect`: wait until the archive holds the labels that Kafka has, and pin the data set and the champion.
3. `quality`: measure the labelled events that are new. Those that break a hard expectation end it as `held`, unless a
   person asked, who insists by that. A data set that a version was trained on before ends it as well, unless a person
   asked: then the gate is offered that version.
4. `prepare`: the data set's shards.
5. `tune`, where DEEPLAMBDA_GENERATION_TRIALS asks for it: try hyperparameters, from the champion's on.
6. `train`: from the champion's weights, with its hyperparameters; from scratch, with the best of the trials. A champion
   that learned from what was taken back since hands on no weights: one that it replaced does, or none. Publish the
   version.
7. `judge`: offer it to the gate, which may reject it. Where some of its data set was taken back meanwhile, it ends as
   `held`; so it does after a rollback by a person, unless a person asked: else the twin of what was rolled back would
   serve in its place.
8. `shadow`, where DEEPLAMBDA_GENERATION_SHADOW_LABELS asks for it: have it answer live events beside the champion until
   their labels decide, or say too little in the time given. Then it is promoted, or rejected.
Each step is first noted in the table `generations` and on Kafka. A step that is done does nothing when it is taken up
again, so a process may be killed anywhere: the next one ends as it would have; only where some of the data set was
taken back meanwhile, or nobody took it up until upkeep had removed its snapshots, it pins another. A process that loses
the lock, because MySQL went away, ends at once, as if it had been killed.
"""

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict
from pyspark.sql import SparkSession
from sqlalchemy import Connection, Engine

from batch_layer.archived import archived_to
from batch_layer.data_set import DataSet, data_set, has_snapshots, is_current
from batch_layer.gate import conclude, judge, roll_back
from batch_layer.label_quality import measure_generation
from batch_layer.lake_rows import append_verdicts
from batch_layer.news import News
from batch_layer.pipeline import PipelineListener, prepare_shards, train_and_publish
from batch_layer.prepare import keep_snapshots
from batch_layer.shadow_step import shadowed
from batch_layer.taken_back import TakenBack
from batch_layer.triggers import MAX_ATTEMPTS, Due
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.mysql import engine, mysql_errors
from deeplambda.config import Settings
from deeplambda.errors import Conflict, DeepLambdaError, UnfitModel
from deeplambda.loading import PackedApplication
from deeplambda.service.loops import in_one_line
from deeplambda.state import generation_store as store
from deeplambda.state import outbox, registry
from deeplambda.state.card import Card
from deeplambda.state.generation_store import Generation, generation_lock

_BEAT_S = 5.0
_WHO = "generation {}"
"""Who decides, as the registry has it."""

_log = logging.getLogger(__name__)


def run_generation(
    settings: Settings,
    packed: PackedApplication,
    due: Due,
    listener: PipelineListener,
    start_spark: Callable[[], SparkSession],
) -> Generation:
    """Take up the generation that was left, or begin one, and see it to its end; that end.

    due: why one is begun. start_spark: called once there is work.
    Raises: Conflict when another process works on one; what the steps raise, with the generation `failed`, or left to
    be taken up where another attempt may do better.
    """
    platform = engine(settings, "platform")
    with generation_lock(platform, packed.name) as lock:
        generation = _taken_up(platform, packed.name) or _begun(settings, platform, packed.name, due)
        with _beating(platform, lock, generation):
            try:
                if generation.attempts > MAX_ATTEMPTS:
                    last = f", the last time: {generation.verdict}" if generation.verdict else ""
                    return store.end(
                        platform, generation, "failed", f"given up: {MAX_ATTEMPTS} processes did not finish it{last}"
                    )
                return _Work(settings, platform, packed, listener, start_spark()).run(generation)
            except Exception as exc:
                said = in_one_line(exc)
                if is_final(exc):
                    store.end(platform, generation, "failed", said)
                else:
                    store.note(platform, generation, said)
                raise
            finally:
                with Publisher(settings) as publisher:
                    outbox.relay(platform, publisher)


def _taken_up(platform: Engine, application: str) -> Generation | None:
    with mysql_errors(), platform.connect() as connection:
        left = store.newest(connection, application)
    return store.take_up(platform, left) if left is not None and left.is_running else None


def _begun(settings: Settings, platform: Engine, application: str, due: Due) -> Generation:
    with News(settings, [application]) as news, mysql_errors(), platform.connect() as connection:
        before = store.newest(connection, application)
        new_labels = news.labels_since(application, before.label_offsets if before else {})
        ends = news.label_ends(application)
    return store.begin(platform, application, due.cause, due.why, ends, new_labels)


def is_final(exc: Exception) -> bool:
    """Whether another attempt would end the same way. What is not the platform's own error may be a service's."""
    if isinstance(exc, Conflict) and not isinstance(exc, UnfitModel):
        return False
    return isinstance(exc, DeepLambdaError) and not exc.retryable


@contextmanager
def _beating(platform: Engine, lock: Connection, generation: Generation) -> Iterator[None]:
    """Meanwhile say that the process lives, and end it once the lock is lost: another one may hold it by then."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_BEAT_S):
            try:
                held = store.still_held(lock, generation.application)
                store.beat(platform, generation)
            except Exception:
                _log.exception("MySQL did not answer")
                held = False
            if not held:
                _log.error("generation %s of %s has lost its lock", generation.number, generation.application)
                os._exit(1)

    thread = threading.Thread(target=beat, name="generation-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Data(BaseModel):
    """What a generation learns from, as its row keeps it. champion: at that moment; tainted: whether it learned from
    what was taken back. parent: the version whose weights training begins from; None: from scratch."""

    model_config = ConfigDict(frozen=True)

    dataset: DataSet
    champion: int | None
    tainted: bool = False
    parent: int | None = None


def parent_of(champions: Iterable[Card], tainted: Collection[int], code_version: str) -> int | None:
    """The version whose weights a training may begin from: the first of the deployed code that is not tainted.

    champions: the one that serves, and those that it replaced. tainted: that learned from what was taken back.
    """
    fit = (card for card in champions if card.code_version == code_version and card.version not in tainted)
    return next((card.version for card in fit), None)


class _Work:
    """The steps of one process."""

    def __init__(
        self,
        settings: Settings,
        platform: Engine,
        packed: PackedApplication,
        listener: PipelineListener,
        spark: SparkSession,
    ) -> None:
        self._settings, self._platform, self._packed = settings, platform, packed
        self._listener, self._spark = listener, spark
        self._known: TakenBack | None = None

    def run(self, generation: Generation) -> Generation:
        generation = self._step(generation, "collect")
        if generation.data is None or not self._is_of_use(_Data.model_validate(generation.data).dataset):
            generation = self._pinned(generation)
        data = _Data.model_validate(generation.data)
        generation = self._step(generation, "quality")
        reasons = self._unexpected(generation, data.dataset)
        if reasons and generation.cause != "person":
            verdict = f"the new labelled events are not as expected: {'; '.join(reasons)}"
            return store.end(self._platform, generation, "held", verdict)
        known = self._version_of(data.dataset, before=generation.started_at)
        if known is not None and (generation.cause != "person" or known == data.champion):
            verdict = f"nothing is new: version {known} was trained on the same rows"
            return store.end(self._platform, generation, "unchanged", verdict)
        if known is None:
            generation = self._step(generation, "prepare")
            prepare_shards(self._spark, self._settings, self._packed, data.dataset, self._listener)
            drawn = {}
            if self._settings.generation_trials and self._packed.load().search_space:
                generation = self._step(generation, "tune")
                drawn = self._tuned(data)
            generation = self._step(generation, "train")
            known = self._trained(data, drawn)
        generation = store.trained(self._platform, generation, known)
        generation = self._step(generation, "judge")
        return self._judged(generation, data)

    def _step(self, generation: Generation, name: str) -> Generation:
        generation = store.step(self._platform, generation, name)
        with Publisher(self._settings) as publisher:
            outbox.relay(self._platform, publisher)
        return generation

    def _is_of_use(self, dataset: DataSet) -> bool:
        """Whether this code would make the same of it, and what it was made of is still there, and still counts."""
        there = is_current(self._packed, dataset) and has_snapshots(self._spark, dataset)
        return there and not self._taken_back().of(dataset)

    def _taken_back(self) -> TakenBack:
        """As of now; what is known of it stays known as long as nothing changes."""
        if self._known is None or not self._known.is_current():
            self._known = TakenBack(self._spark, self._packed.name)
        return self._known

    def _pinned(self, generation: Generation) -> Generation:
        with self._listener.working("waiting for the archive to hold the labels that Kafka has"):
            offsets = archived_to(self._spark, self._settings, self._packed.name, "labels", generation.label_offsets)
        dataset = data_set(self._spark, self._packed)
        if dataset.labelled_events is not None:
            keep_snapshots(self._spark, self._settings, dataset, dataset.labelled_events)
        with mysql_errors(), self._platform.connect() as connection:
            cards = {card.version: card for card in registry.cards(connection, self._packed.name)}
            champions = [cards[version] for version in registry.champions(connection, self._packed.name)]
        champion = champions[0].version if champions else None
        tainted, parent = self._taken_back().versions(cards.values()), None
        if self._settings.generation_from == "champion":
            parent = parent_of(champions, tainted, self._packed.code_version)
        data = _Data(dataset=dataset, champion=champion, tainted=champion in tainted, parent=parent)
        return store.pin(self._platform, generation, data.model_dump(mode="json"), offsets)

    def _unexpected(self, generation: Generation, dataset: DataSet) -> list[str]:
        """The hard expectations that the labels break which no version at the gate has seen, in words."""
        with mysql_errors(), self._platform.connect() as connection:
            since = store.labels_judged(connection, self._packed.name)
        with self._listener.working("measuring the labelled events that are new"):
            return measure_generation(self._spark, self._settings, self._packed, dataset, generation.number, since)

    def _version_of(self, dataset: DataSet, before: datetime) -> int | None:
        """The newest version that was trained on the same rows by the same code before this generation began, and whose
        weights did not begin from what was taken back."""
        with mysql_errors(), self._platform.connect() as connection:
            cards = registry.cards(connection, self._packed.name)
        same = {card.version for card in cards if card.dataset == dataset.id and card.created_at < before}
        return max(same.difference(self._taken_back().versions(cards)), default=None)

    def _hyperparameters(self, data: _Data) -> dict[str, Any]:
        """Of the version whose weights, or else whose place, it is to take, where that is of the deployed code."""
        if (version := data.parent or data.champion) is None:
            return {}
        with mysql_errors(), self._platform.connect() as connection:
            card = registry.published_card(connection, self._packed.name, version)
        return card.hyperparameters if card.code_version == self._packed.code_version else {}

    def _tuned(self, data: _Data) -> dict[str, Any]:
        """What the best of the trials drew; those of a process that was killed are gone on with."""
        from batch_layer.tune import tune  # it brings Ray

        trials, space = self._settings.generation_trials, self._packed.load().search_space
        before = self._hyperparameters(data)
        with self._listener.working(f"tuning: {trials} trials"):
            found = tune(
                self._settings,
                self._packed,
                dataset=data.dataset.id,
                overrides={name: value for name, value in before.items() if name not in space},
                first={name: value for name, value in before.items() if name in space},
                trials=trials,
            )
        return found[0].drawn

    def _trained(self, data: _Data, drawn: Mapping[str, Any]) -> int:
        """drawn: by the best trial. Trials begin from scratch, and so does what they stand for."""
        init_from = str(data.parent) if data.parent and not drawn else None
        overrides = {**self._hyperparameters(data), **drawn}
        work = (self._spark, self._settings, self._packed, data.dataset, overrides, self._listener)
        return train_and_publish(*work, init_from=init_from).version

    def _judged(self, generation: Generation, data: _Data) -> Generation:
        version = generation.version or 0
        with mysql_errors(), self._platform.connect() as connection:
            promoted_at = registry.last_promoted_at(connection, self._packed.name, version)
        try:
            # else the last process was killed after this
            if promoted_at is None or promoted_at < generation.started_at:
                verdict = judge(self._settings, self._packed, version)
                gone = self._taken_back().of(data.dataset)
                rolled_back = None if generation.cause == "person" or verdict.reasons else self._rolled_back()
                if rolled_back and not gone:
                    promote = f"'deeplambda model promote {self._packed.name} {version}' has it serve"
                    said = f"the gate would let version {version} through, but {rolled_back}; {promote}"
                    return store.end(self._platform, generation, "held", said)
                if self._settings.generation_shadow_labels and not verdict.reasons and not gone:
                    generation = self._step(generation, "shadow")
                    with self._listener.working("a shadow of the champion, until labels of live events decide"):
                        verdict = shadowed(self._settings, self._platform, self._packed, generation, verdict)
                    gone = self._taken_back().of(data.dataset)
                if gone:
                    self._take_back(generation, version, gone)
                    return store.end(self._platform, generation, "held", f"{gone} while it was under way")
                who, why = _WHO.format(generation.number), f"{generation.cause}: {generation.why}"
                conclude(self._settings, self._packed.name, verdict, who=who, why=why)
        except UnfitModel as exc:
            return store.end(self._platform, generation, "rejected", exc.message)
        finally:
            self._append_verdicts()
        return store.end(self._platform, generation, "promoted", f"the gate let it through{self._began(data, version)}")

    def _append_verdicts(self) -> None:
        try:
            append_verdicts(self._spark, self._platform, self._packed.name)
        except Exception:  # what was decided stands, and upkeep brings there what is missing
            _log.exception("the decisions about %s are not in its verdicts yet", self._packed.name)

    def _rolled_back(self) -> str | None:
        """What a person has done since the last promotion who went back to an earlier version, in words."""
        with mysql_errors(), self._platform.connect() as connection:
            newest = registry.last_rollback(connection, self._packed.name)
        if newest is None or (newest.who or "").startswith(_WHO.format("")):
            return None
        who = newest.who or "somebody"
        return f"{who} went back to version {newest.version} at {newest.at:%Y-%m-%d %H:%M}Z and has promoted none since"

    def _take_back(self, generation: Generation, version: int, gone: str) -> None:
        """Have the champion before it serve again where its shadow has already made the version the champion."""
        with mysql_errors(), self._platform.connect() as connection:
            champion = registry.champion(connection, self._packed.name)
        if champion is not None and champion.version == version:
            roll_back(self._settings, self._packed.name, who=_WHO.format(generation.number), why=gone)

    def _began(self, data: _Data, version: int) -> str:
        """What a version began from where that is not the champion for what it has learned."""
        if not data.tainted:
            return ""
        with mysql_errors(), self._platform.connect() as connection:
            began = registry.published_card(connection, self._packed.name, version).init_from
        return (
            f"; it began from {began or 'scratch'}, not from champion {data.champion}, which learned from what was "
            "taken back"
        )
