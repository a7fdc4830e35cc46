"""The model service's routes: the Open Inference Protocol v2, the simple protocol v1, health, metrics."""

import time
from collections.abc import Mapping
from http import HTTPStatus
from importlib.metadata import version as installed_version
from math import prod
from typing import Any

from flask import Flask, Response, g, request
from pydantic_core import to_json

from deeplambda.adapters.machine import cpu_share
from deeplambda.adapters.model_service import FEATURIZER_HEADER, TIMEOUT_HEADER
from deeplambda.application import Event
from deeplambda.config import Settings
from deeplambda.errors import BadInput, Conflict, Overloaded, kept
from deeplambda.objective import SCORES_LIMIT, Predictions
from deeplambda.records.experiments import CANARY_HEADER, CANDIDATE_WITHIN_S
from deeplambda.service import problems
from deeplambda.service.cooperative_worker import Connection, result_of
from speed_layer.model_service import oip
from speed_layer.model_service.aside import Aside
from speed_layer.model_service.bodies import BodyReader
from speed_layer.model_service.canaries import ANSWERS_WITHIN_S, RunningCanary
from speed_layer.model_service.champions import Champion, ChampionWatch
from speed_layer.model_service.extensions import NAMES, extensions
from speed_layer.model_service.instances import decode_instances, encode_predictions, made_up_id, merged
from speed_layer.model_service.jobs import Job, Scored
from speed_layer.model_service.metrics import ServiceMetrics
from speed_layer.model_service.passes import Passes
from speed_layer.model_service.serving import Champions, check_fresh, no_champion
from speed_layer.model_service.turns import Turns

Answer = Response | tuple[bytes, Mapping[str, str]]
_ENCODED_BYTES, _SCORE_BYTES = 64, 32
"""About what an event adds to a reply, and each of its scores, without the names of classes."""
_JSON = {"Content-Type": "application/json"}


class OtherFeaturizer(Conflict):
    """A request whose features were made with other code or learned state than the model takes."""

    def __init__(self, given: str, champion: Champion) -> None:
        super().__init__(
            f"the features were made with {given[:80]!r}, version {champion.card.version} takes those of "
            f"{champion.featurizer.id!r}",
            "make them with the code of that version",
        )
        self.champion = champion


def check_featurizer(given: str | None, champion: Champion) -> None:
    """given: what the client says; clients that say nothing are trusted. Raises: OtherFeaturizer."""
    if given is not None and given != champion.featurizer.id:
        raise OtherFeaturizer(given, champion)


def deadline(timeout_us: int | None = None) -> float:
    """`time.monotonic()` by which the request's answer has to be there, as its header says, or its parameter.

    Raises: BadInput.
    """
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return g.begun + timeout_us / 1e6 if timeout_us else float("inf")
    if not (given.isascii() and given.isdecimal() and 0 < len(given) < 10):
        raise BadInput(f"header {TIMEOUT_HEADER} is {given[:40]!r}", "send a whole number of milliseconds")
    begun: float = g.begun
    return begun + int(given) / 1000


def create_app(settings: Settings, champions: Champions, metrics: ServiceMetrics) -> Flask:
    """The service as a WSGI application."""
    app = Flask(__name__)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    problems.register(app)
    app.register_error_handler(OtherFeaturizer, _other_featurizer)
    app.register_blueprint(extensions(settings, champions, metrics.statistics))
    aside = Aside(metrics.in_progress)
    bodies = BodyReader(aside)
    turns = Turns(cpu_share())
    passes = {name: Passes(name, turns, metrics.passed) for name in champions.watches}

    def score(name: str, job: Job, canary: RunningCanary | None = None) -> Scored:
        with metrics.in_progress.track_inprogress():
            (passes[name] if canary is None else canary.passes).submit(job)
            begun, version = time.monotonic(), job.champion.card.version
            try:
                scored = result_of(job.scored, job.left_s)
            except BaseException as exc:
                metrics.statistics.failed(name, version, time.monotonic() - begun)
                if not isinstance(exc, TimeoutError):
                    raise
                job.scored.cancel()
                # what a canary's requests wait for is its candidate, whichever of them it is at
                raise (job.too_late if canary is None else job.late) from exc
            metrics.scored(name, version, job.count, time.monotonic() - begun, job.times)
        return scored

    @app.before_request
    def begin() -> None:
        connection: Connection | None = request.environ.get("gunicorn.socket")
        g.begun = time.monotonic() if connection is None else connection.begun

    @app.after_request
    def end(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else "none"
        name = (request.view_args or {}).get("name")
        metrics.answered(
            route,
            request.method,
            response.status_code,
            time.monotonic() - g.begun,
            name if name in champions.watches else None,
        )
        if response.status_code >= 400 and request.path.startswith("/v2"):
            problems.name_error(response)
        return response

    @app.get("/v2")
    def server() -> Answer:
        return _json({"name": "deeplambda", "version": installed_version("deeplambda"),
                      "extensions": NAMES})  # fmt: skip

    @app.get("/v2/health/live")
    def live() -> Answer:
        return _json({"live": True})

    @app.get("/v2/health/ready")
    def ready() -> Answer:
        waiting = [watch for watch in champions.watches.values() if not watch.is_ready]
        if waiting:
            raise no_champion(*waiting)
        for watch in champions.watches.values():
            check_fresh(settings, watch)
        return _json({"ready": True})

    @app.get("/v1/health")
    def health() -> Answer:
        watches = champions.watches.values()
        serving = [watch.name for watch in watches if watch.current]
        waiting = [watch for watch in watches if not (watch.was_tried if serving else watch.is_ready)]
        if waiting:
            raise no_champion(*waiting)
        return _json({"serving": serving})

    @app.get("/v2/models/<name>")
    @app.get("/v2/models/<name>/versions/<version>")
    def model(name: str, version: str | None = None) -> Answer:
        champion = champions.serving(name, version)
        card = champion.card
        described = oip.metadata(name, card.version, card.features, champion.output_shape)
        return _json(
            described | {"parameters": _provenance(champion, champions.watch(name))}, champion, champions.canary(name)
        )

    @app.get("/v2/models/<name>/ready")
    @app.get("/v2/models/<name>/versions/<version>/ready")
    def model_ready(name: str, version: str | None = None) -> Answer:
        champion = champions.serving(name, version)
        check_fresh(settings, champions.watch(name))
        return _json({"name": name, "ready": True}, champion)

    @app.post("/v2/models/<name>/infer")
    @app.post("/v2/models/<name>/versions/<version>/infer")
    def infer(name: str, version: str | None = None) -> Answer:
        canary = champions.canary(name, version) if version is not None else None
        champion = champions.serving(name, version) if canary is None else canary.candidate
        with bodies.body(request, name, deadline(), "application/json", "application/octet-stream") as body:
            check_featurizer(request.headers.get(FEATURIZER_HEADER), champion)
            header, wanted = request.headers.get(oip.HEADER_LENGTH), champion.card.features
            passes[name].check_room()
            json_bytes = oip.json_bytes(header, len(body))
            asked = aside.result(name, lambda: oip.decode_request(body, header, wanted), json_bytes, deadline())
            reply_bytes = oip.reply_bytes(asked, champion.output_shape, champion.name_bytes)
            until = deadline(asked.timeout_us)
            scored_until = until if canary is None else min(until, time.monotonic() + CANDIDATE_WITHIN_S)
            job = Job(champion, asked.features, decodes=asked.decodes, until=scored_until)
            scored = score(name, job, canary)
        classes, number = getattr(champion.application.objective, "classes", ()), champion.card.version
        reply, headers = aside.result(
            name,
            lambda: oip.encode_response(asked, model=name, version=number, scored=scored, classes=classes),
            reply_bytes,
            until,
            scored=True,
        )
        return reply, {**headers, **_version(champion, champions.canary(name))}

    @app.get("/v1/models")
    def models() -> Answer:
        return _json({"models": [
            {"name": name, "model_version": watch.current.card.version if watch.current else None, "error": watch.error}
            for name, watch in champions.watches.items()
        ]})  # fmt: skip

    @app.get("/v1/models/<name>")
    def simple_model(name: str) -> Answer:
        champion = champions.serving(name, None)
        described = {
            "name": name,
            "model_version": champion.card.version,
            **_provenance(champion, champions.watch(name)),
        }
        return _json(described | {"event_schema": champion.application.event.model_json_schema()}, champion)

    @app.post("/v1/models/<name>:predict")
    def predict(name: str) -> Answer:
        champion = champions.serving(name, None)
        schema, until = champion.application.event, deadline()
        with bodies.body(request, name, until, "application/json") as body:
            passes[name].check_room()
            events = decoded(name, schema, body, until)
            width = prod(champion.output_shape)
            oip.check_reply(len(events) * width * oip.VALUE_BYTES)
            scores_bytes = _SCORE_BYTES * min(width, SCORES_LIMIT) + champion.scores_bytes
            reply_bytes = len(events) * (_ENCODED_BYTES + champion.name_bytes + scores_bytes)
            oip.check_reply(reply_bytes)
            canary = champions.canary(name)
            taken = [] if canary is None else taken_by(canary, events)
            theirs = None if canary is None or not taken else by_canary(name, canary, body, taken)
            versions = None
            if canary is None or not isinstance(theirs, Predictions):
                predictions = predicted(name, champion, events)
                if canary is not None and isinstance(theirs, Exception):
                    canary.failed(events[taken[0]].event_id, theirs)
            else:
                parts, versions = [(taken, theirs)], [champion.card.version] * len(events)
                for row in taken:
                    versions[row] = canary.candidate.card.version
                if rest := [n for n, version in enumerate(versions) if version == champion.card.version]:
                    parts.append((rest, predicted(name, champion, [events[n] for n in rest])))
                else:
                    champion = canary.candidate
                predictions = merged(parts)
        reply = aside.result(
            name,
            lambda: encode_predictions(events, champion.card.version, predictions, versions),
            reply_bytes,
            until,
            scored=True,
        )
        return reply, {**_JSON, **_version(champion, canary)}

    def decoded(name: str, schema: type[Event], body: bytes, until: float) -> list[Event]:
        limit_bytes = settings.event_limit_bytes
        return aside.result(name, lambda: decode_instances(body, schema, limit_bytes=limit_bytes), len(body), until)

    def predicted(name: str, champion: Champion, events: list[Event]) -> Predictions:
        predictions = score(name, Job(champion, events, until=deadline())).predictions
        assert predictions is not None
        return predictions

    def by_canary(name: str, canary: RunningCanary, body: bytes, rows: list[int]) -> Predictions | Exception | None:
        """The candidate's predictions of these instances, or why it has none; None where it was not asked."""
        schema, until = canary.candidate.application.event, time.monotonic() + ANSWERS_WITHIN_S
        try:
            until = min(deadline(), until)
            theirs = decoded(name, schema, body, until)
            job = Job(canary.candidate, [theirs[n] for n in rows], until=until)
            predictions = score(name, job, canary).predictions
        except Overloaded:
            return None
        except Exception as exc:  # whatever it is, the champion answers these too
            return kept(exc)
        canary.answered()
        return predictions

    @app.get("/metrics")
    def exposition() -> Answer:
        return metrics.exposition(), {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}

    return app


def taken_by(canary: RunningCanary, events: list[Event]) -> list[int]:
    """Which of the events the candidate is to answer: none that the client gave no id."""
    return [n for n, each in enumerate(events) if each.event_id != made_up_id(n) and canary.takes(each.event_id)]


def _other_featurizer(exc: OtherFeaturizer) -> Response:
    return problems.problem(
        HTTPStatus.CONFLICT,
        "Other Features",
        exc.message,
        remedy=exc.remedy,
        featurizer=exc.champion.featurizer.id,
        model_version=exc.champion.card.version,
    )


def _json(value: Any, champion: Champion | None = None, canary: RunningCanary | None = None) -> Answer:
    return to_json(value), {**_JSON, **(_version(champion, canary) if champion else {})}


def _version(champion: Champion, canary: RunningCanary | None = None) -> dict[str, str]:
    """canary: where one runs, which clients that route events have to know."""
    version = {"X-Model-Version": str(champion.card.version)}
    return version if canary is None else {**version, CANARY_HEADER: canary.known.header}


def _provenance(champion: Champion, watch: ChampionWatch) -> dict[str, Any]:
    """Where the champion comes from; `error`: why a newer champion could not be loaded."""
    card = champion.card
    return {
        "weights_sha256": card.weights_sha256,
        "code_version": card.code_version,
        "dataset": card.dataset,
        "snapshot": card.snapshot,
        "metrics": card.metrics,
        "created_at": card.created_at.isoformat(),
        "variant": champion.path.variant,
        "error": watch.error,
    }
