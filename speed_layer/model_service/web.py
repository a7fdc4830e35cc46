"""The model service's routes: the Open Inference Protocol v2, the simple protocol v1, health, metrics."""

import os
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from importlib.metadata import version as installed_version
from typing import Any

import numpy as np
from flask import Flask, Response, g, request
from numpy.typing import NDArray
from pydantic_core import from_json, to_json
from werkzeug.exceptions import NotFound

from deeplambda.adapters.model_service import FEATURIZER_HEADER
from deeplambda.config import Settings
from deeplambda.errors import Conflict, InvalidEvent, NotReady, UnknownApplication
from deeplambda.features import Features, chosen, row_count
from deeplambda.records.answers import answers, finite
from deeplambda.records.featurizer import said
from deeplambda.records.isolation import halved
from deeplambda.service import problems
from speed_layer.model_service import oip
from speed_layer.model_service.bodies import BodyReader
from speed_layer.model_service.champions import Champion, ChampionWatch
from speed_layer.model_service.fast_path import FastPath
from speed_layer.model_service.instances import decode_instances, encode_predictions, features_of
from speed_layer.model_service.metrics import ServiceMetrics

Answer = Response | tuple[bytes, Mapping[str, str]]
_SEEN_VALUES = "send values like those that it was trained on"
_JSON = {"Content-Type": "application/json"}


class Champions:
    """The champions of all applications, by name."""

    def __init__(self, watches: Mapping[str, ChampionWatch]) -> None:
        self.watches = watches

    def watch(self, name: str) -> ChampionWatch:
        """Raises: UnknownApplication."""
        if name not in self.watches:
            raise UnknownApplication(f"no model {name!r}", f"this service serves: {', '.join(self.watches)}")
        return self.watches[name]

    def serving(self, name: str, version: str | None) -> Champion:
        """The champion of `name`, which has to be `version` if one is given.

        Raises: UnknownApplication, NotFound for another version, NotReady before the first champion.
        """
        watch = self.watch(name)
        champion = watch.current
        if champion is None:
            raise no_champion(watch)
        if version is not None and version != str(champion.card.version):
            raise NotFound(f"version {version} of {name!r} does not serve; version {champion.card.version} does")
        return champion


def no_champion(*watches: ChampionWatch) -> NotReady:
    """The error for requests to applications without a champion; it gives each one's reason."""
    reasons = [f"{watch.name!r} has no champion yet" + (f": {watch.error}" if watch.error else "") for watch in watches]
    return NotReady(
        "; ".join(reasons), f"if none was promoted, train one and run 'deeplambda model promote {watches[0].name}'"
    )


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


def finite_outputs(path: FastPath, features: Features) -> NDArray[np.float32]:
    """Outputs of N rows. Raises: InvalidEvent that names the first row that the model fails on."""

    def attempt(rows: slice) -> NDArray[np.float32]:
        try:
            return path(chosen(features, rows))
        except Exception as exc:  # a user's model may raise anything, on values that training has not seen
            raise InvalidEvent(f"the model raised {said(exc)}", _SEEN_VALUES) from exc

    found = halved(attempt, row_count(features), InvalidEvent)
    if found.refused:
        first = min(found.refused)
        raise InvalidEvent(f"row {first}: {found.refused[first].message}", _SEEN_VALUES)
    outputs = np.concatenate([piece for _, piece in found.pieces])
    if not (finite_N := finite(outputs)).all():
        row = int(np.flatnonzero(~finite_N)[0])
        raise InvalidEvent(f"row {row}: the model's outputs are not finite", _SEEN_VALUES)
    return outputs


def create_app(settings: Settings, champions: Champions, metrics: ServiceMetrics) -> Flask:
    """The service as a WSGI application."""
    app = Flask(__name__)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    problems.register(app)
    app.register_error_handler(OtherFeaturizer, _other_featurizer)
    bodies = BodyReader()
    passes = threading.BoundedSemaphore(os.cpu_count() or 1)  # more at a time would only slow one another down

    def score(name: str, champion: Champion, features: Features) -> NDArray[np.float32]:
        with metrics.in_progress.track_inprogress(), passes:
            outputs = finite_outputs(champion.path, features)
        metrics.scored(name, champion.card.version, row_count(features))
        return outputs

    @app.before_request
    def begin() -> None:
        g.begun = time.perf_counter()

    @app.after_request
    def end(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else "none"
        name = (request.view_args or {}).get("name")
        metrics.answered(
            route,
            request.method,
            response.status_code,
            time.perf_counter() - g.begun,
            name if name in champions.watches else None,
        )
        if response.status_code >= 400 and request.path.startswith("/v2"):
            _name_error(response)
        return response

    @app.get("/v2")
    def server() -> Answer:
        return _json({"name": "deeplambda", "version": installed_version("deeplambda"),
                      "extensions": ["binary_tensor_data"]})  # fmt: skip

    @app.get("/v2/health/live")
    def live() -> Answer:
        return _json({"live": True})

    @app.get("/v2/health/ready")
    def ready() -> Answer:
        waiting = [watch for watch in champions.watches.values() if not watch.is_ready]
        if waiting:
            raise no_champion(*waiting)
        return _json({"ready": True})

    @app.get("/v2/models/<name>")
    @app.get("/v2/models/<name>/versions/<version>")
    def model(name: str, version: str | None = None) -> Answer:
        champion = champions.serving(name, version)
        card = champion.card
        described = oip.metadata(name, card.version, card.features, champion.output_shape)
        return _json(described | {"parameters": _provenance(champion, champions.watch(name))}, champion)

    @app.get("/v2/models/<name>/ready")
    @app.get("/v2/models/<name>/versions/<version>/ready")
    def model_ready(name: str, version: str | None = None) -> Answer:
        return _json({"name": name, "ready": True}, champions.serving(name, version))

    @app.post("/v2/models/<name>/infer")
    @app.post("/v2/models/<name>/versions/<version>/infer")
    def infer(name: str, version: str | None = None) -> Answer:
        champion = champions.serving(name, version)
        with bodies.body(request, "application/json", "application/octet-stream") as body:
            check_featurizer(request.headers.get(FEATURIZER_HEADER), champion)
            asked = oip.decode_request(body, request.headers.get(oip.HEADER_LENGTH), champion.card.features)
            outputs = score(name, champion, asked.features)
        reply, headers = oip.encode_response(
            asked,
            model=name,
            version=champion.card.version,
            outputs=outputs,
            decode=lambda found: answers(champion.application.objective, found).all(),
        )
        return reply, {**headers, **_version(champion)}

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
        application = champion.application
        with bodies.body(request, "application/json") as body:
            events = decode_instances(body, application.event, limit_bytes=settings.event_limit_bytes)
        outputs = score(name, champion, features_of(champion.featurizer, events))
        reply = encode_predictions(events, champion.card.version, answers(application.objective, outputs).all())
        return reply, {**_JSON, **_version(champion)}

    @app.get("/metrics")
    def exposition() -> Answer:
        return metrics.exposition(), {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}

    return app


def _other_featurizer(exc: OtherFeaturizer) -> Response:
    return problems.problem(
        HTTPStatus.CONFLICT,
        "Other Features",
        exc.message,
        remedy=exc.remedy,
        featurizer=exc.champion.featurizer.id,
        model_version=exc.champion.card.version,
    )


def _json(value: Any, champion: Champion | None = None) -> Answer:
    return to_json(value), {**_JSON, **(_version(champion) if champion else {})}


def _version(champion: Champion) -> dict[str, str]:
    return {"X-Model-Version": str(champion.card.version)}


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


def _name_error(response: Response) -> None:
    """Add the member `error` to a problem, where clients of the Open Inference Protocol look for the reason."""
    if response.mimetype == problems.MEDIA_TYPE:
        body = from_json(response.get_data())
        response.set_data(to_json(body | {"error": "; ".join(filter(None, [body["detail"], body.get("remedy")]))}))
