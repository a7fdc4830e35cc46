"""Scoring a batch of event records: each becomes either a prediction or a dead letter."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from deeplambda.adapters.model_service import ModelClient, OtherFeatures
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput, DeadlinePassed, InvalidEvent, NotReady, TooManyRefused
from deeplambda.features import chosen, row_bytes
from deeplambda.records import topics
from deeplambda.records.admission import Admitted, admit
from deeplambda.records.answers import answers
from deeplambda.records.dead_letters import DeadLetter
from deeplambda.records.decoding import Reason, RefusedEvent
from deeplambda.records.experiments import CANDIDATE_WITHIN_S, Canary
from deeplambda.records.featurizer import Featurizer
from deeplambda.records.isolation import halved
from deeplambda.records.lifecycle import ChallengerFailed
from deeplambda.records.predictions import Prediction, slices_of
from deeplambda.service.champion_code import ChampionCode
from deeplambda.service.loops import in_one_line
from deeplambda.state.card import fetch_card
from deeplambda.state.versions import load_code
from speed_layer.stream.failures import Failure, counted, rest_of

Record = tuple[str, bytes, bytes]
"""Topic, key and value."""
_PATIENCE_S = 60.0
_log = logging.getLogger(__name__)
_FIRST_PASS_ROWS = 64
_PASS_BYTES = 32 * 1024 * 1024
"""Of features that are held at once: an event of a few bytes may become a large tensor."""


class Scorer:
    """Turns one application's records into predictions and dead letters, with the code of the version that serves.

    One lives in each process that scores, for the life of the process: it keeps the connection to the model service
    and the code that was last asked for. While a canary runs, which the service's answers tell, the events that its
    candidate takes go to that one first. hops_ms: time that went by in each hop, which whoever reads it sets to zero.
    replays: whether its predictions are of events that were scored before; those are the champion's alone.
    """

    def __init__(self, settings: Settings, name: str, *, replays: bool = False) -> None:
        self._settings, self._name, self._replays = settings, name, replays
        self._client = ModelClient(settings, name)
        self._code = ChampionCode(settings, name, self._client, patience_s=_PATIENCE_S)
        self._candidate: Candidate | None = None
        self._rest = rest_of(settings, name)
        self._pass_rows = _FIRST_PASS_ROWS
        self.hops_ms: defaultdict[str, float] = defaultdict(float)

    def records(self, rows: list[dict[str, Any]]) -> list[Record]:
        """What becomes of rows of Spark's Kafka source: a record for each.

        However long the culprits among them take to be found, they are: a batch given up would only be tried again.
        Raises: NotReady when the model service stays away, or no champion was ever promoted.
        """
        out: list[Record] = []
        done = 0
        while done < len(rows):
            piece = rows[done : done + self._pass_rows]
            out += self._pass(piece)
            done += len(piece)
        return out

    def _pass(self, rows: list[dict[str, Any]]) -> list[Record]:
        """Score what is held at once.

        1. check and transform every event with the code of the champion, as far as it is known
        2. have the model service score the features, naming that code
        3. where the model takes features of other code or learned state, load those and begin again; where no event
           passed the code that is known, ask whether that is still the champion's
        4. where the model has no answer for some rows, halve the batch until they stand alone
        5. what a canary's candidate has answered is left out of 2 to 4; all that it has no answer to is not, and where
           the champion has answered that, a failure is told
        """
        keyed = [(row["key"], row["value"]) for row in rows]
        while True:
            featurizer = self._code.current()
            with timed(self.hops_ms, "transform"):
                admitted = admit(featurizer, keyed, limit_bytes=self._settings.event_limit_bytes, within_s=math.inf)
            if admitted.events_N:
                each_bytes = row_bytes(admitted.features) + self._client.output_bytes
                self._pass_rows = max(1, _PASS_BYTES // max(1, each_bytes))
            if not admitted.events_N and self._code.renew():
                continue
            out = [dead_letter(self._name, rows[n], refusal, self._code.version) for n, refusal in admitted.refused]
            try:
                by_canary, failures = self._by_canary(rows, admitted)
                left = [n for n in range(len(admitted.events_N)) if n not in by_canary]
                others = _part(admitted, left) if by_canary else admitted
                answered, refused, inference_ms = scored(
                    self._client, self._name, featurizer, rows, others, replayed=self._replays
                )
                self.hops_ms["model"] += inference_ms
            except OtherFeatures as other:
                self._code.load(other.model_version)
                continue
            out += [
                dead_letter(
                    self._name,
                    rows[others.rows_N[n]],
                    RefusedEvent(refusal.message, refusal.remedy, Reason.MODEL_FAILED),
                    self._code.version,
                )
                for n, refusal in refused.items()
            ]
            if (failed := counted(failures, {left[n] for n in answered})) is not None:
                _log.warning("canary %s/%d: %s", self._name, failed.version, failed.reason)
                out.append((topics.LIFECYCLE, self._name.encode(), failed.model_dump_json().encode()))
            return out + list(by_canary.values()) + list(answered.values())

    def _by_canary(self, rows: list[dict[str, Any]], admitted: Admitted) -> tuple[dict[int, Record], Sequence[Failure]]:
        """By position of what was admitted, the records of what a canary's candidate has answered; and what it has no
        answer to. Neither while none runs."""
        canary = None if self._replays else self._client.canary
        taken = [n for n, event in enumerate(admitted.events_N) if canary.takes(event.event_id)] if canary else []
        if canary is None or not taken or self._rest.is_on:
            return {}, ()

        def failed(exc: BaseException, *places: int) -> Failure:
            fact = ChallengerFailed(
                application=self._name,
                number=canary.experiment,
                version=canary.version,
                event_id=admitted.events_N[places[0]].event_id,
                part="stream",
                reason=in_one_line(exc),
            )
            return Failure(rows=places, fact=fact)

        answered: dict[int, Record] = {}
        try:
            if self._candidate is None or self._candidate.canary != canary:
                self._candidate = Candidate(self._settings, self._name, canary)
            answered, refused = self._candidate.records([rows[admitted.rows_N[n]] for n in taken])
        except DeadlinePassed as exc:
            failures = [failed(exc, *taken)]
        except NotReady:  # service or store is away, which is not the candidate's fault
            self._rest.begin()
            return {}, ()
        except (Exception, SystemExit) as exc:  # whatever a candidate's code does, the champion answers these too
            failures = [failed(exc, *taken)]
        else:
            failures = [failed(exc, taken[n]) for n, exc in refused.items()]
            if answered:  # of all events, perhaps: then nobody asks the champion, whose answers tell of the next canary
                self._client.canary = self._candidate.told
        if failures and not answered and not self._rest.begin():
            failures = []  # the scorer beside this one tells of it
        return {taken[n]: record for n, record in answered.items()}, failures


class Candidate:
    """What answers a canary's events: the candidate's code, and a client that waits for no service that is away.

    Raises when made: CorruptObject, BadInput, NotReady.
    """

    def __init__(self, settings: Settings, name: str, canary: Canary) -> None:
        store = ObjectStore(settings)
        self.canary, self._settings, self._name = canary, settings, name
        self._featurizer = load_code(store, settings, fetch_card(store, name, canary.version)).featurizer
        self._featurizer.limit_s = min(self._featurizer.limit_s, CANDIDATE_WITHIN_S)
        self._client = ModelClient(
            settings, name, version=canary.version, patience_s=0, read_timeout_s=CANDIDATE_WITHIN_S
        )

    @property
    def told(self) -> Canary | None:
        """The canary that ran when it answered last."""
        return self._client.canary

    def records(self, rows: list[dict[str, Any]]) -> tuple[dict[int, Record], dict[int, BadInput]]:
        """By position, the records of what it has answered, and why it has no answer to others; nothing where the
        canary has ended.

        Raises: as `ModelClient.predict`; TooManyRefused when what it has no answer to is not found in time.
        """
        until_s = time.monotonic() + CANDIDATE_WITHIN_S
        keyed, limit_bytes = [(row["key"], row["value"]) for row in rows], self._settings.event_limit_bytes
        admitted = admit(self._featurizer, keyed, limit_bytes=limit_bytes, within_s=CANDIDATE_WITHIN_S)
        try:
            left_s = until_s - time.monotonic()
            answered, refused, _ = scored(self._client, self._name, self._featurizer, rows, admitted, within_s=left_s)
        except TooManyRefused:
            raise
        except BadInput:  # the service does not know it any more
            return {}, {}
        places = admitted.rows_N
        return (
            {places[n]: record for n, record in answered.items()},
            {**dict(admitted.refused), **{places[n]: refusal for n, refusal in refused.items()}},
        )


def _part(admitted: Admitted, rows: list[int]) -> Admitted:
    return Admitted(
        rows_N=[admitted.rows_N[n] for n in rows],
        events_N=[admitted.events_N[n] for n in rows],
        features=chosen(admitted.features, rows),
        refused=admitted.refused,
    )


def scored(
    client: ModelClient,
    name: str,
    featurizer: Featurizer,
    rows: list[dict[str, Any]],
    admitted: Admitted,
    *,
    replayed: bool = False,
    within_s: float = math.inf,
) -> tuple[dict[int, Record], dict[int, BadInput], float]:
    """By position of what was admitted, records of predictions, and why there is none; and how long the model took, in
    ms. within_s: how long rows that the model has no answer to are looked for.

    Raises: as `ModelClient.predict`, but for those rows; TooManyRefused when they are not found in time.
    """
    started = time.perf_counter()
    found = halved(
        lambda piece: client.predict(chosen(admitted.features, piece), featurizer.id),
        len(admitted.events_N),
        InvalidEvent,
        within_s=within_s,
    )
    inference_ms = (time.perf_counter() - started) * 1e3
    refused: dict[int, BadInput] = dict(found.refused)
    out: dict[int, Record] = {}
    for piece, answered_by in found.pieces:
        answered, predicted_at = answers(featurizer.application.objective, answered_by.outputs), now()
        refused |= {piece.start + n: refusal for n, refusal in answered.refused.items()}
        for answer, n in enumerate(answered.rows_N):
            event, row = admitted.events_N[piece.start + n], rows[admitted.rows_N[piece.start + n]]
            try:
                prediction = Prediction(
                    application=name,
                    event_id=event.event_id,
                    kafka_partition=row["partition"],
                    kafka_offset=row["offset"],
                    occurred_at=event.occurred_at,
                    received_at=row["timestamp"],
                    predicted_at=predicted_at,
                    model_version=int(answered_by.versions_N[n]),
                    prediction=answered.values_N[answer],
                    confidence=float(answered.confidence_N[answer]),
                    value=answered.numbers_N[answer],
                    scores=answered.scores_N[answer],
                    inference_ms=inference_ms,
                    code_version=featurizer.code_version,
                    slices=slices_of(featurizer.application, event),
                    replayed=replayed,
                )
            except ValidationError as exc:
                refused[piece.start + n] = BadInput(exc.errors(include_url=False)[0]["msg"])
            else:
                key = event.event_id.encode()
                out[piece.start + n] = (topics.predictions(name), key, prediction.model_dump_json().encode())
    return out, refused, inference_ms


def dead_letter(application: str, row: dict[str, Any], refusal: RefusedEvent, model_version: int | None) -> Record:
    letter = DeadLetter.of_record(
        application=application,
        reason=refusal.reason,
        detail=str(refusal),
        topic=row["topic"],
        partition=row["partition"],
        offset=row["offset"],
        received_at=row["timestamp"],
        key=row["key"],
        value=row["value"],
        model_version=model_version,
    )
    return topics.dead_letters(application), letter.record_key.encode(), letter.model_dump_json().encode()


@contextmanager
def timed(hops_ms: defaultdict[str, float], hop: str) -> Iterator[None]:
    """Add to a hop's time what the block takes."""
    started_s = time.perf_counter()
    yield
    hops_ms[hop] += (time.perf_counter() - started_s) * 1e3
