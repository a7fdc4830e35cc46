"""Triton's extensions of the Open Inference Protocol: model configuration, repository, statistics.

A repository's models are this service's applications, of which it serves the champions: `load` has a process take up
the newest champion at once, `unload` has it serve none until then. Both need an operator's token, and last until the
process ends.
Source: triton-inference-server/server, docs/protocol: extension_model_configuration, _model_repository, _statistics.
"""

from concurrent.futures import Future
from typing import Any

from flask import Blueprint, Response, request
from pydantic_core import from_json, to_json

from deeplambda.config import Settings
from deeplambda.errors import BadInput, NotReady
from deeplambda.service.cooperative_worker import result_of
from deeplambda.service.tokens import authorize
from speed_layer.model_service import oip
from speed_layer.model_service.bodies import coding_of, inflated
from speed_layer.model_service.serving import Champions
from speed_layer.model_service.statistics import Statistics

NAMES = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
)
"""As `GET /v2` lists them."""
_LOAD_WITHIN_S = 60.0
_BODY_BYTES = 64 * 1024


def extensions(settings: Settings, champions: Champions, statistics: Statistics) -> Blueprint:
    """Their routes."""
    routes = Blueprint("extensions", __name__, url_prefix="/v2")

    @routes.get("/models/<name>/config")
    @routes.get("/models/<name>/versions/<version>/config")
    def config(name: str, version: str | None = None) -> Response:
        champion = champions.serving(name, version)
        return _json(oip.configuration(name, champion.card.features, champion.output_shape, champion.path.best_rows))

    @routes.get("/models/stats")
    @routes.get("/models/<name>/stats")
    @routes.get("/models/<name>/versions/<version>/stats")
    def stats(name: str | None = None, version: str | None = None) -> Response:
        asked = (
            [watch.current for watch in champions.watches.values()]
            if name is None
            else [champions.serving(name, version)]
        )
        served = [(each.card.application, each.card.version) for each in asked if each]
        return _json({"model_stats": [statistics.as_json(*each) for each in served]})

    @routes.post("/repository/index")
    def index() -> Response:
        only_ready = _body().get("ready") is True
        models = [
            {
                "name": name,
                "version": str(watch.current.card.version) if watch.current else "",
                "state": "READY" if watch.current else "UNAVAILABLE",
                "reason": watch.error or "",
            }
            for name, watch in champions.watches.items()
        ]
        return _json([model for model in models if model["state"] == "READY" or not only_ready])

    @routes.post("/repository/models/<name>/load")
    def load(name: str) -> Response:
        authorize(settings, request.headers.get("Authorization"), "operator")
        if _body().get("parameters"):
            raise BadInput("a model is served as it was published", "send no 'parameters'")
        return done(name, champions.watch(name).load())

    @routes.post("/repository/models/<name>/unload")
    def unload(name: str) -> Response:
        authorize(settings, request.headers.get("Authorization"), "operator")
        return done(name, champions.watch(name).unload())

    def done(name: str, order: "Future[None]") -> Response:
        try:
            result_of(order, _LOAD_WITHIN_S)
        except TimeoutError as exc:
            order.cancel()
            raise NotReady(
                f"{name!r} is not done within {_LOAD_WITHIN_S:.0f} s", "see 'deeplambda logs model'"
            ) from exc
        return Response()

    return routes


def _body() -> dict[str, Any]:
    request.max_content_length = _BODY_BYTES
    content = inflated(request.get_data(cache=False), coding_of(request), _BODY_BYTES)
    try:
        found = from_json(content or b"{}")
    except ValueError as exc:
        raise BadInput(f"the request is not JSON: {exc}", "send a JSON object, or nothing") from exc
    if not isinstance(found, dict):
        raise BadInput("the request is not a JSON object", "send one, or nothing")
    return found


def _json(value: Any) -> Response:
    return Response(to_json(value), mimetype="application/json")
